"""Registrations as they stand in source files, read from the parsed text: nothing is imported."""

from __future__ import annotations

import ast
import functools
import inspect
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..needs import NEEDS, ORACLE, OUTPUTS, UPPER_BOUND_FAMILIES
from .entry import Entry, Hyper
from .registration import PROTOCOLS, Kind, RegistryError, register_method, register_task

_SUITE = Path(__file__).resolve().parents[1]
_BASES = {
    "StreamMethod": "protocols/stream.py",
    "AdaptationMethod": "protocols/adaptation_method.py",
    "PolicyMethod": "protocols/policy_method.py",
}
"""Base classes that give hyper-parameters to all methods of their protocol, and their files."""
_PARTS = ("registry/registration.py", "registry/entry.py", "registry/source.py", "hyper.py", "needs.py")
READERS = tuple(_SUITE / name for name in (*_PARTS, *_BASES.values()))
"""What entries depend on beside the files that hold their registrations."""


def read_file(kind: Kind, file: Path, module: str | None) -> Iterator[Entry]:
    """The registrations in one source file, in order."""
    try:
        source = file.read_text(encoding="utf-8")
        if f"register_{kind}(" not in source:
            return
        tree = ast.parse(source, str(file))
    except SyntaxError as error:
        raise RegistryError(f"{file}, line {error.lineno}: {error.msg}.") from None
    except (OSError, ValueError) as error:
        raise RegistryError(f"{file} cannot be read: {error}.") from None
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            for call in node.decorator_list:
                if isinstance(call, ast.Call) and _called(call) == f"register_{kind}":
                    yield from _read_class(kind, file, module, node, call)


def _read_class(kind: Kind, file: Path, module: str | None, node: ast.ClassDef, call: ast.Call) -> Iterator[Entry]:
    """The class, and its variants."""
    where = f"{file}, line {call.lineno}"
    try:
        given = [ast.literal_eval(item) for item in call.args]
        named = {str(item.arg): ast.literal_eval(item.value) for item in call.keywords}
        hypers = tuple(_hypers(node))
        presets: dict[str, Any] = next(
            (
                ast.literal_eval(item.value)
                for item in node.body
                if isinstance(item, (ast.Assign, ast.AnnAssign)) and item.value and _target(item) == "presets"
            ),
            {},
        )
    except (ValueError, IndexError):
        raise RegistryError(f"{where}: the arguments of register_{kind} and hyper must be literals.") from None
    except TypeError as error:
        raise RegistryError(f"{where}: a hyper-parameter of {node.name}: {error}.") from None
    name, options = _arguments(kind, given, named, where)
    if kind == "method":
        for base in node.bases:
            base_file = _BASES.get(ast.unparse(base).split(".")[-1])
            if base_file:
                own = {item.name for item in hypers}
                hypers = tuple(item for item in _base_hypers(base_file) if item.name not in own) + hypers
    doc = ast.get_docstring(node) or ""
    variants = options.pop("variants", None) or {}
    entry = Entry(kind, name, node.name, file, module, doc, options, hypers, presets)
    yield entry
    for own_name, changes in variants.items():
        differing: dict[str, Any] = {"set": {}, **changes}
        changed = differing.pop("set")
        merged = {**options, "bundle": options["bundle"] or name, **differing}
        _, merged = _arguments(kind, [own_name], merged, f"{where}, variant '{own_name}'")
        merged.pop("variants")
        yield replace(entry, name=own_name, options=merged, changed=dict(changed))


def _arguments(kind: Kind, given: list[Any], named: dict[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    """Name and options of a registration, defaults filled in, checked as the decorator's signature would."""
    signature = inspect.signature(register_method if kind == "method" else register_task)
    try:
        bound = signature.bind(*given, **named)
    except TypeError as error:
        raise RegistryError(f"{where}: register_{kind}: {error}.") from None
    bound.apply_defaults()
    options = dict(bound.arguments)
    name = options.pop("name")
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise RegistryError(f"{where}: a {kind}'s name is lower case words joined by '-', got {name!r}.")
    if options["protocol"] not in PROTOCOLS:
        raise RegistryError(f"{where}: protocol must be one of {', '.join(PROTOCOLS)}, got {options['protocol']!r}.")
    for word in ("needs", "frozen", "data", "grants", "tags"):
        if not isinstance(options.get(word, ()), tuple):
            raise RegistryError(f"{where}: {word} must be a tuple such as ('one',), got {options[word]!r}.")
    if ORACLE in options.get("needs", ()) and options["family"] not in UPPER_BOUND_FAMILIES:
        raise RegistryError(
            f"{where}: a method that needs {ORACLE} is of the family upper-bound, got {options['family']!r}."
        )
    source = options.get("source")
    whole = isinstance(source, dict) and source.keys() == {"bundle", "data"} and isinstance(source["data"], tuple)
    if source is not None and not whole:
        raise RegistryError(f"{where}: source is {{'bundle': a name, 'data': a tuple of data sets}}, got {source!r}.")
    decoded = options.get("decoded")
    if decoded is not None and not {"pictures", "shape"} <= set(decoded) <= {"pictures", "shape", "dtype"}:
        raise RegistryError(f"{where}: decoded is {{'pictures': a number, 'shape': a tuple}}, got {decoded!r}.")
    outputs = options["outputs"]
    if not isinstance(outputs, tuple if kind == "method" else str) or not set(_several(outputs)) <= OUTPUTS.keys():
        raise RegistryError(f"{where}: outputs must be of {', '.join(OUTPUTS)}, got {outputs!r}.")
    return name, options


def _several(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


@functools.cache
def _base_hypers(base_file: str) -> tuple[Hyper, ...]:
    """Hyper-parameters that the base class of a protocol gives to all of its methods."""
    tree = ast.parse((_SUITE / base_file).read_text(encoding="utf-8"))
    bases = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name in _BASES]
    return tuple(item for node in bases for item in _hypers(node))


def _hypers(node: ast.ClassDef) -> Iterator[Hyper]:
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.value, ast.Call) and _called(item.value) == "hyper":
            call = item.value
            values = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
            if values.get("choices") is not None:
                values["choices"] = tuple(values["choices"])
            yield _checked(Hyper(str(_target(item)), ast.literal_eval(call.args[0]), **values))


def _checked(item: Hyper) -> Hyper:
    """`item`; raises `TypeError` where what its values ask for is not declared as it must be."""
    if isinstance(item.asks, dict):
        unknown = set(item.asks) - set(item.choices or ())
        if unknown:
            raise TypeError(f"'{item.name}' has no choice {min(map(str, unknown))!r} that could ask for something")
    elif item.choices is not None and item.asks:
        raise TypeError(f"asks of '{item.name}' must map choices to tuples, such as {{'strong': ('one',)}}")
    for asked in item.asks.values() if isinstance(item.asks, dict) else (item.asks,):
        if not isinstance(asked, tuple) or not set(asked) <= NEEDS.keys() | OUTPUTS.keys():
            raise TypeError(f"'{item.name}' asks for {asked!r}, which is no tuple of needs or outputs")
    return item


def _called(call: ast.Call) -> str:
    return ast.unparse(call.func).split(".")[-1]


def _target(item: ast.Assign | ast.AnnAssign) -> str | None:
    target = item.targets[0] if isinstance(item, ast.Assign) else item.target
    return target.id if isinstance(target, ast.Name) else None
