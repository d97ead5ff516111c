"""`selfbench info`: one method, task or suite, without importing it."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from ..errors import UsageError, did_you_mean
from . import options


def info(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A method, task or suite.")],
    as_json: options.Json = False,
) -> None:
    """Show what a method, task or suite is.

    \b
    Examples:
      selfbench info tent
      selfbench info digits-semi --json
    """
    from .. import registry
    from ..suites import read_suite, suite_names

    for kind in ("method", "task"):
        entry = registry.entries(kind).get(name)
        if entry is not None:
            data = _describe(entry)
            typer.echo(json.dumps(data, indent=1) if as_json else _text(data))
            return
    if name in suite_names():
        path, table = read_suite(name)
        typer.echo(json.dumps(table, indent=1) if as_json else path.read_text(encoding="utf-8").rstrip())
        return
    known = [*registry.entries("method"), *registry.entries("task"), *suite_names()]
    raise UsageError(f"There is no method, task or suite '{name}'.{did_you_mean(name, known)}")


def _describe(entry: Any) -> dict[str, Any]:
    data: dict[str, Any] = {"kind": entry.kind, "name": entry.name, **entry.options, "description": entry.doc}
    if apart := data.pop("source", None):
        data["data of its source"] = apart["data"]
    if wanted := data.pop("decoded", None):
        from ..prepare.decoded_option import Decoded, limit_bytes

        kept = Decoded(**wanted)
        data["decoded pictures"] = {
            "number": kept.pictures,
            "shape": kept.shape,
            "gigabytes": round(kept.size / 1e9, 1),
            "bound": f"SELFBENCH_DECODED_GB, {limit_bytes() / 1e9:g}; what does not fit is decoded at each access",
        }
    if entry.kind == "method":
        data["hyper-parameters"] = {
            item.name: {
                key: value
                for key, value in (
                    ("default", item.default),
                    ("low", item.low),
                    ("high", item.high),
                    ("log", item.log or None),
                    ("choices", item.choices),
                    ("help", item.help or None),
                )
                if value is not None
            }
            for item in entry.hypers
        }
        data["presets"] = entry.presets
    data["source"] = str(entry.file)
    return data


def _text(data: dict[str, Any]) -> str:
    lines = [f"{data['kind']} {data['name']}", "", data["description"], ""]
    for key, value in data.items():
        if key in ("kind", "name", "description") or value in (None, (), {}, []):
            continue
        if isinstance(value, dict):
            lines.append(f"{key}:")
            lines += [f"  {name}: {_plain(item)}" for name, item in value.items()]
        else:
            lines.append(f"{key}: {_plain(value)}")
    return "\n".join(lines)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)
