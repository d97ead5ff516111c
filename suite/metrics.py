"""Metrics by name: what is computed from predictions and labels, and which direction is better.

Values are fractions; pages show error and accuracy in per cent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    name: str
    title: str
    better: Literal["lower", "higher"]
    percent: bool = True


PROBE = "probe_"
"""Begins the names of the shares of a task's probes that are right: what is asked beside its own problems."""

METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("error", "Error", "lower"),
        Metric("accuracy", "Accuracy", "higher"),
        Metric("mean_domain_error", "Error, mean over domains", "lower"),
        Metric("worst_group_error", "Worst-domain error", "lower"),
        Metric("worst_group_accuracy", "Worst-group accuracy", "higher"),
        Metric("worst_region_accuracy", "Worst-region accuracy", "higher"),
        Metric("tenth_percentile_accuracy", "Accuracy of the 10th percentile of users", "higher"),
        Metric("macro_f1", "Macro F1", "higher"),
        Metric("worst_group_correlation", "Worst-group Pearson r", "higher", percent=False),
        Metric("correlation", "Pearson r", "higher", percent=False),
        Metric("rank_correlation", "Kendall tau", "higher", percent=False),
        Metric("mean_domain_detection_accuracy", "Detection accuracy, mean over domains", "higher"),
        Metric("detection_accuracy", "Detection accuracy", "higher"),
        Metric("class_method_accuracy", "Accuracy on names of classes and methods", "higher"),
        Metric("average_precision", "Average precision", "higher"),
        Metric("entity_f1", "F1 of entities", "higher"),
        Metric("entity_precision", "Precision of entities", "higher"),
        Metric("entity_recall", "Recall of entities", "higher"),
        Metric("token_accuracy", "Accuracy on tagged words", "higher"),
        Metric("em_greedy", "Exact match, greedy decoding", "higher"),
        Metric("f1_greedy", "F1, greedy decoding", "higher"),
        Metric("em_exact_extract", "Exact match, most probable span", "higher"),
        Metric("f1_exact_extract", "F1, most probable span", "higher"),
        Metric("f1_same_language", "F1 within one language, most probable span", "higher"),
        Metric("mean_squared_error", "Mean squared error", "lower", percent=False),
        Metric("learning_curve_area", "Area under the learning curve", "higher"),
        Metric("majority_accuracy", "Accuracy of the majority vote", "higher"),
        Metric("pass_at_k", "At least one right of k samples", "higher"),
        Metric("swap_consistency", "Verdicts that agree in both orders", "higher"),
        Metric("lenient_accuracy", "Accuracy of the lenient parser", "higher"),
        Metric("response_parse_rate", "Scored responses that parse", "higher"),
        Metric("parse_rate", "Votes that parse", "higher"),
        Metric("plain_accuracy", "Accuracy of greedy responses instead", "higher"),
        Metric("answer_tokens", "Tokens of a response", "lower", percent=False),
        Metric("own_parse_rate", "Own samples that parse", "higher"),
        Metric("feedback_parse_rate", "Own feedback that parses", "higher"),
        Metric("judgement_parse_rate", "Own judgements that parse", "higher"),
        Metric("probe_arc_easy", "ARC-Easy, asked besides", "higher"),
        Metric("pool_accuracy", "Accuracy on the pool", "higher"),
        Metric("confident_share", "Confident predictions (95 %) on the pool", "higher"),
        Metric("confident_accuracy", "Accuracy of confident predictions", "higher"),
        Metric("end_error", "Error in the last tenth of the stream", "lower"),
        Metric("clean_error", "Clean error after the stream", "lower"),
        Metric("nll", "Negative log-likelihood", "lower", percent=False),
        Metric("brier", "Brier score", "lower", percent=False),
        Metric("ece", "Expected calibration error", "lower"),
        Metric("exact_error", "Error under the true distribution", "lower"),
        Metric("excess_error", "Error above the Bayes error", "lower"),
    )
}


def metric_of(name: str) -> Metric:
    """The metric called `name`. Of those that nobody declared a probe is a share, others are as they are: lower is
    better."""
    if name in METRICS:
        return METRICS[name]
    if name.startswith(PROBE):
        return Metric(name, f"Probe: {name.removeprefix(PROBE).replace('_', ' ')}", "higher")
    return Metric(name, name, "lower", percent=False)
