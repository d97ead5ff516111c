"""Tables of single runs. Drawn here and not in templates, as there may be a hundred thousand of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from ..board import formats
from ..board.table import OK
from ..index import Summary
from ..metrics import metric_of

_COST: tuple[tuple[str, str, Callable[[float], str], bool], ...] = (
    ("Forward passes", "forward", formats.count, True),
    ("Backward passes", "backward", formats.count, True),
    ("Counted passes", "passes", formats.count, True),
    ("Tokens", "tokens", formats.count, False),
    ("Tokens generated", "generated_tokens", formats.count, False),
    ("Tokens scored", "scored_tokens", formats.count, False),
    ("Tokens trained on", "trained_tokens", formats.count, False),
    ("Labels bought", "labels", formats.count, False),
    ("Validation calls", "validation_calls", formats.count, False),
    ("Method time", "seconds", formats.duration, True),
    ("GPU time", "gpu_seconds", formats.duration, False),
    ("Harness time", "setup_seconds", formats.duration, True),
    ("Preparation, once for all runs", "preparation_seconds", formats.duration, False),
    ("Peak memory, MiB", "peak_memory_mb", formats.count, True),
    ("Peak GPU memory, MiB", "peak_gpu_memory_mb", formats.count, False),
)


def listing(runs: Iterable[tuple[Summary, str, Sequence[str]]]) -> Markup:
    """The rows of the list of runs: (run, label of its row, suites) each."""
    rows = []
    for run, label, suites in runs:
        score = formats.DASH if run.value is None else _score(run.value, run.primary)
        status = f"<td>{OK}</td>" if run.status == OK else f'<td class="bad">{run.status}</td>'
        rows.append(
            f'<tr><th scope="row"><a href="{run.run_id}.html"><code>{run.run_id[:8]}</code></a></th>'
            f'<td>{_plain(run.task)}</td><td>{_plain(label)}</td><td class="n">{run.seed}</td>{status}'
            f'<td class="n" data-v="{"" if run.value is None else run.value}">{score}</td>'
            f"<td>{_plain(', '.join(suites))}</td></tr>"
        )
    return Markup("\n".join(rows))


def cost(values: Mapping[str, float]) -> Markup:
    """Counted and measured cost; what is zero and need not be there is left out."""
    # A record keeps what its day knew: later costs are absent from earlier ones.
    found = [(name, show, values.get(key, 0), kept) for name, key, show, kept in _COST]
    return Markup("".join([_pair(name, show(value)) for name, show, value, kept in found if kept or value]))


def metrics(values: Mapping[str, float], diagnostics: Mapping[str, float]) -> Markup:
    rows = [_pair(_metric(name), _score(value, name)) for name, value in values.items()]
    rows += [
        _pair(f'{_words(name)} <span class="tag">diagnostic</span>', f"{value:.4g}")
        for name, value in diagnostics.items()
    ]
    return Markup("".join(rows))


def domains(groups: Mapping[str, Mapping[str, float]]) -> Markup:
    """All metrics by domain: a list for one metric, a table for several, nothing where there are none."""
    names = sorted(groups)
    found = sorted({domain for values in groups.values() for domain in values})
    if not found:
        return Markup("")
    if len(names) == 1:
        pairs = [_pair(_words(domain), _score(groups[names[0]][domain], names[0])) for domain in found]
        return Markup('<dl class="pairs n">{}</dl>').format(Markup("".join(pairs)))
    head = "".join([f'<th scope="col" class="n">{_metric(name)}</th>' for name in names])
    rows = []
    for domain in found:
        cells = [_score(groups[name][domain], name) if domain in groups[name] else formats.DASH for name in names]
        row = "".join([f'<td class="n">{cell}</td>' for cell in cells])
        rows.append(f'<tr><th scope="row">{_words(domain)}</th>{row}</tr>')
    return Markup(
        f'<table><thead><tr><th scope="col">Domain</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )


def specification(spec: Mapping[str, Any], condition: str) -> Markup:
    """What the seeds of one row have in common."""
    task, method = spec["task"], spec["method"]
    rows = [
        _text("Task", f"{task['name']}, version {task['version']}"),
        _text("Method", f"{method['name']}, version {method['version']}"),
    ]
    rows += [_text(Markup("<code>{}</code>").format(name), value) for name, value in method["params"].items()]
    return Markup("".join([*rows, _text("Condition", condition)]))


def provenance(record: Mapping[str, Any]) -> Markup:
    """Where the numbers came from."""
    origin = record["provenance"]
    shared = _shared(
        *(origin[name] for name in ("selfbench", "git_commit", "git_dirty", "python", "platform", "processor", "gpu")),
        tuple(origin["packages"].items()),
        *(origin[name] for name in ("method_sha256", "task_sha256", "bundle_sha256")),
    )
    rows = [_text("Made", origin["created"]), shared]
    if origin["attempt"] > 1 or origin["resumed"]:
        rows.append(_text("Attempt", f"{origin['attempt']}, resumed {formats.plural(origin['resumed'], 'time')}"))
    rows += [
        _digest(name, value)
        for name, value in (
            ("Stream", origin["stream_sha256"]),
            *((f"Source: {part}", sha256) for part, sha256 in origin.get("source_sha256", {}).items()),
            ("Predictions", record["predictions_sha256"]),
        )
        if value
    ]
    return Markup("".join(rows))


@functools.lru_cache(maxsize=1024)
def _shared(
    selfbench: str,
    commit: str | None,
    dirty: bool | None,
    python: str,
    platform: str,
    processor: str,
    gpu: str | None,
    packages: tuple[tuple[str, str], ...],
    method: str,
    task: str,
    bundle: str,
) -> str:
    """The part of a provenance that many runs have in common."""
    made_by = escape(selfbench)
    if commit:
        made_by += Markup(", commit <code>{}</code>").format(commit[:12])
    if dirty:
        made_by += ", with local changes"
    return "".join(
        (
            _text("Selfbench", made_by),
            _text("Python", python),
            _text("Packages", ", ".join(f"{name} {version}" for name, version in packages)),
            _text("Machine", ", ".join(part for part in (platform, processor, gpu) if part)),
            _digest("Method source", method),
            _digest("Task source", task),
            _digest("Data and weights", bundle),
        )
    )


def _pair(name: str, value: str) -> str:
    """A name and a value that are markup already."""
    return f"<dt>{name}</dt><dd>{value}</dd>"


def _text(name: object, value: object) -> str:
    return f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>"


def _digest(name: str, value: str) -> str:
    return _text(name, Markup("<code>{}</code>").format(value[:16]))


def _score(value: float, name: str) -> str:
    metric = metric_of(name)
    return formats.number(value, metric) + formats.unit(metric)


@functools.lru_cache(maxsize=4096)
def _plain(text: str) -> str:
    return str(escape(text))


@functools.lru_cache(maxsize=4096)
def _words(name: str) -> str:
    """A name with blanks for underscores, escaped."""
    return str(escape(name.replace("_", " ")))


@functools.lru_cache(maxsize=4096)
def _metric(name: str) -> str:
    return str(escape(metric_of(name).title))
