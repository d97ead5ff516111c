"""What a method may ask of a task. The harness grants only what is declared, and the board groups by it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

NEEDS: Mapping[str, str] = {
    "images": "inputs that are images (B, C, H, W)",
    "real-inputs": "inputs that are real numbers, not ids of tokens",
    "convolutions": "a model with two or more stages of convolutions",
    "norm-layers": "a source model with batch, group or layer normalisation",
    "batch-norm": "a source model with batch normalisation",
    "source-unlabeled": "images that trained the source model, without labels",
    "source-data": "labelled source images",
    "source-posterior": "a Gaussian over the source model's weights (SWAG, diagonal)",
    "strong-augmentation": "a strong view of every input, beside the weak one",
    "domains": "the domain of every labelled and unlabelled example",
    "test-inputs": "the test inputs, without labels, during training (transductive)",
    "oracle-labels": "the true classes of unlabelled examples (an upper bound)",
    "masked-tokens": "token ids as inputs, and a head on the model that predicts hidden ones",
    "verifier": "verdicts on answers to prompts of the pool",
    "answers": "the true answers to prompts of the pool, as hints",
    "environment": "an environment that answers a policy's steps, and words for revising them",
    "judge": "a prompt by which a policy judges responses in points",
    "references": "reference answers to the problems whose responses are judged",
    "shots": "a way of putting worked problems before a prompt",
    "attempts": "words for feedback on a response, and for another attempt that sees both",
    "steps": "responses of several steps, whose ends the task knows",
    "code": "an interpreter for the code in responses, in a sandbox",
    "solutions": "worked responses to prompts of the pool (an upper bound)",
}

SOURCE_PARTS: Mapping[str, str] = {
    "source-unlabeled": "source",
    "source-data": "source",
    "source-posterior": "posterior",
}
"""The needs for which a task may keep data apart from its bundle, and the part that each one takes."""

ORACLE = "oracle-labels"
"""For methods of the families of upper bounds alone."""

TRANSDUCTIVE = "test-inputs"
"""A task that does not grant it is inductive: no method may learn from the inputs it is tested on."""

UPPER_BOUND_FAMILIES = ("oracle", "upper-bound")

OUTPUTS: Mapping[str, str] = {
    "classes": "one of K classes an example: logits (B, K)",
    "numbers": "numbers: (B, K)",
    "labels": "yes or no for each of K labels: logits (B, K)",
    "tokens": "one of K classes a token: logits (B, T, K)",
    "boxes": "boxes with classes",
    "spans": "the first and the last of T places: logits (B, 2, T)",
}
"""What the model of an adaptation task returns. A method names the kinds that it works on."""


IMPLIED: Mapping[str, tuple[str, ...]] = {"images": ("real-inputs",)}
"""What a grant grants as well."""


def missing_needs(needs: Iterable[str], grants: Iterable[str]) -> list[str]:
    """The declared needs that are not granted, in their declared order."""
    granted = {name for grant in grants for name in (grant, *IMPLIED.get(grant, ()))}
    return [need for need in needs if need not in granted]
