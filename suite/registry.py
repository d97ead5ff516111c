"""Methods and tasks by name, without importing them.

A registered class is declared by a decorator with literal arguments. Listing reads those arguments from the parsed
source (`ast`), so that neither the file nor torch is imported until a run needs the class; what was read is kept until
the file changes (`registry_cache.py`). Places that are searched:
the rooms `methods/` and `tasks/` of this package, the folders in `$SELFBENCH_PATH`, and the installed entry points of
the groups `selfbench.methods` and `selfbench.tasks`.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from .errors import SelfbenchError, UsageError, did_you_mean
from .hyper import check_value
from .needs import ORACLE, OUTPUTS, UPPER_BOUND_FAMILIES
from .registry_cache import Form, read_cached

Kind = Literal["method", "task"]
PACKAGE = Path(__file__).resolve().parent.parent
PROTOCOLS = ("stream", "adaptation", "policy")
_BASES = {
    "StreamMethod": ("protocols/stream.py", "stream"),
    "AdaptationMethod": ("protocols/adaptation_method.py", "adaptation"),
    "PolicyMethod": ("protocols/policy_method.py", "policy"),
}
_Class = TypeVar("_Class", bound=type)


class RegistryError(SelfbenchError):
    """A registration that cannot be read, or one name registered twice."""


@dataclass(frozen=True)
class Hyper:
    """One hyper-parameter as declared: default, bounds, search range."""

    name: str
    default: Any
    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[Any, ...] | None = None
    help: str = ""
    added: bool = False


@dataclass(frozen=True)
class Entry:
    """One registered class as read from its source file."""

    kind: Kind
    name: str
    qualname: str
    file: Path
    module: str | None
    doc: str
    options: Mapping[str, Any]
    hypers: tuple[Hyper, ...] = ()
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    changed: Mapping[str, Any] | None = None
    """The class attributes in which a variant differs from the class that it is one of; None for the class itself."""

    @property
    def protocol(self) -> str:
        return str(self.options["protocol"])

    @property
    def version(self) -> str:
        return str(self.options.get("version", "1"))

    @property
    def summary(self) -> str:
        return self.doc.strip().split("\n")[0]

    @property
    def source_sha256(self) -> str:
        return hashlib.sha256(self.file.read_bytes()).hexdigest()

    def load(self) -> type:
        """Import the file and return the class, or the subclass that is this variant of it."""
        module = importlib.import_module(self.module) if self.module else _import_file(self.file)
        cls: type = getattr(module, self.qualname)
        if self.changed is None:
            return cls
        for attribute in self.changed:
            if not hasattr(cls, attribute):
                raise RegistryError(
                    f"{self.file}: the variant '{self.name}' sets '{attribute}', which its class has not."
                )
        own = {"__doc__": cls.__doc__, "__module__": cls.__module__, **self.changed}
        return _mark(self.kind, self.name, dict(self.options))(type(cls.__name__, (cls,), own))

    def params(self, given: Mapping[str, Any] | None = None, preset: str = "") -> dict[str, Any]:
        """All hyper-parameters: `given` over those of `preset`, where the method has it, over the defaults; checked.

        A preset `a/b` is `a` in a narrower setting: a method without values of its own for it takes those of `a`.
        """
        known = {item.name: item for item in self.hypers}
        result = {item.name: item.default for item in self.hypers}
        while preset not in self.presets and "/" in preset:
            preset = preset.rpartition("/")[0]
        for name, value in {**self.presets.get(preset, {}), **(given or {})}.items():
            if name not in known:
                have = ", ".join(known) or "none"
                raise UsageError(
                    f"{self.kind} '{self.name}' has no hyper-parameter '{name}' (it has: {have})."
                    f"{did_you_mean(name, known)}"
                )
            item = known[name]
            rule = {"low": item.low, "high": item.high, "choices": item.choices}
            result[name] = check_value(f"{self.kind} '{self.name}'", name, value, item.default, rule)
        return result

    @property
    def added(self) -> dict[str, Any]:
        """Hyper-parameters that came after runs were recorded, with the defaults at which a spec leaves them out."""
        return {item.name: item.default for item in self.hypers if item.added}


def register_method(
    name: str,
    *,
    family: str,
    protocol: str,
    paper: str,
    needs: tuple[str, ...] = (),
    frozen: tuple[str, ...] = (),
    outputs: tuple[str, ...] = ("classes",),
    own_judge: bool = False,
    version: str = "1",
) -> Callable[[_Class], _Class]:
    """Register a method class. All arguments must be literals.

    `family` is the idea it belongs to, `paper` its source (`arXiv:...`, a DOI, or `-`), `needs` what it asks of a
    task (see docs/architecture.md), `frozen` the passes of the unchanged source model that it takes from
    `Source.frozen` ("source" or "batch" statistics), `outputs` the kinds of model outputs that it works on (`OUTPUTS`),
    `own_judge` that its own policy's verdicts reward it, for which it asks `view.gate`: boards mark it where the task
    has no gate (tag `judge-gate`); raise `version` whenever its results change.
    """
    return _mark("method", name, {"family": family, "protocol": protocol, "paper": paper, "needs": needs,
                                  "frozen": frozen, "outputs": outputs, "own_judge": own_judge,
                                  "version": version})  # fmt: skip


def register_task(
    name: str,
    *,
    protocol: str,
    version: str,
    metric: str,
    title: str,
    budget: Mapping[str, Any],
    data: tuple[str, ...],
    grants: tuple[str, ...] = (),
    tags: tuple[str, ...] = (),
    selection: str = "last",
    bundle: str | None = None,
    preset: str = "",
    outputs: str = "classes",
    references: Mapping[str, Any] | None = None,
    variants: Mapping[str, Mapping[str, Any]] | None = None,
    source: Mapping[str, Any] | None = None,
    decoded: Mapping[str, Any] | None = None,
) -> Callable[[_Class], _Class]:
    """Register a task class. All arguments must be literals.

    `metric` names the primary one, `budget` is the standard budget of a run (fields of `Budget`), `data` the data
    sets it needs, `grants` what it offers to methods, `selection` its standard rule, `bundle` the name of the bundle
    that it shares with other tasks of its file, `preset` the published hyper-parameters that methods use on it where
    they have them (`presets` of the method; those of `a` where it has none for `a/b`), `outputs` what its model returns
    (`OUTPUTS`); any change of the protocol raises `version`, and the board never mixes versions.

    `references` draws the task's page a plot beside known values: `family` and `panel` name the tasks that belong into
    one plot, `axis` and `at` what sets them apart and this one's place on it, `metric` what is measured, and `curves`
    maps names to the points (x, value) of what is known; one task of a panel gives them.

    `variants` are further tasks on the same data: name -> the arguments that differ, such as the title, and under `set`
    the class attributes that do. They share the bundle unless they name one.

    `source` says that the source's own images lie apart from the bundle, made by `build_source` and `build_posterior`
    and only for methods that need them (`source-unlabeled`, `source-data`, `source-posterior`); all others run without
    its data sets. Its `data` are all that these two stand on, the weights included; its `bundle` is the name that tasks
    of one file share where both come out the same. None: whatever the task grants lies in its bundle.

    `decoded` says that examples are made of files by `decoded(public, indices)` of the class, and would be kept decoded
    (`suite/decoded.py`): how many `pictures` there are as published, their `shape` as arrays, and their `dtype` where
    it is not "uint8".
    """
    options = {"protocol": protocol, "version": version, "metric": metric, "title": title, "budget": dict(budget),
               "data": data, "grants": grants, "tags": tags, "selection": selection, "bundle": bundle,
               "preset": preset, "outputs": outputs, "references": references, "source": source,
               "decoded": decoded}  # fmt: skip
    return _mark("task", name, options)


def _mark(kind: Kind, name: str, options: dict[str, Any]) -> Callable[[_Class], _Class]:
    if options["protocol"] not in PROTOCOLS:
        raise RegistryError(
            f"{kind} '{name}': unknown protocol '{options['protocol']}'; it must be one of {PROTOCOLS}."
        )

    def decorate(cls: _Class) -> _Class:
        cls.__selfbench__ = {"kind": kind, "name": name, **options}  # type: ignore[attr-defined]
        if kind == "task" and options["protocol"] == "policy":
            _check_grants(name, cls, options["grants"])
        return cls

    return decorate


def _check_grants(name: str, cls: type, declared: Sequence[str]) -> None:
    """A policy task declares the needs that it gives objects for, and no others."""
    from .protocols.policy_grants import mismatch

    wrong = mismatch(cls().grants(), declared)
    if wrong:
        raise RegistryError(f"Task '{name}' {wrong}")


def entries(kind: Kind) -> dict[str, Entry]:
    """All registered entries of one kind by name; raises `RegistryError` when two files claim one name."""
    return dict(_entries(kind, os.environ.get("SELFBENCH_PATH", "")))


def get(kind: Kind, name: str) -> Entry:
    """The entry called `name`; the error of an unknown name proposes the nearest one."""
    known = entries(kind)
    if name not in known:
        raise UsageError(f"There is no {kind} '{name}'.{did_you_mean(name, known)} `selfbench list {kind}s` shows all.")
    return known[name]


@functools.lru_cache(maxsize=8)
def _entries(kind: Kind, search_path: str) -> Mapping[str, Entry]:
    found: dict[str, Entry] = {}
    for entry in _all(kind, search_path):
        other = found.get(entry.name)
        if other is not None and (other.file, other.qualname) != (entry.file, entry.qualname):
            raise RegistryError(
                f"The {kind} '{entry.name}' is registered twice: by {other.qualname} in {other.file} "
                f"and by {entry.qualname} in {entry.file}. Rename one of them."
            )
        found[entry.name] = entry
    return dict(sorted(found.items()))


def _all(kind: Kind, search_path: str) -> Iterator[Entry]:
    room = PACKAGE / f"{kind}s"
    yield from _read_folder(kind, room, "selfbench")
    for folder in filter(None, search_path.split(os.pathsep)):
        path = Path(folder).resolve()
        if not path.exists():
            raise RegistryError(f"SELFBENCH_PATH names '{folder}', which does not exist.")
        yield from _read_folder(kind, path, None) if path.is_dir() else read_file(kind, path, None)
    yield from _entry_points(kind)


def _read_folder(kind: Kind, folder: Path, package: str | None) -> Iterator[Entry]:
    """The registrations in all files below `folder`, which are modules of `package` where there is one."""

    def module(file: Path) -> str | None:
        return ".".join((package, *file.relative_to(PACKAGE).with_suffix("").parts)) if package else None

    def read(file: Path) -> list[Entry]:
        return list(read_file(kind, file, module(file)))

    def freeze(entry: Entry) -> Any:
        hypers = [[getattr(item, name) for name in Hyper.__match_args__] for item in entry.hypers]
        return [entry.name, entry.qualname, entry.doc, entry.options, hypers, entry.presets, entry.changed]

    def thaw(file: Path, frozen: Any) -> Entry:
        name, qualname, doc, options, hypers, presets, changed = frozen
        declared = tuple(Hyper(*map(_tuples, item)) for item in hypers)
        options, presets, changed = _tuples(options), _tuples(presets), _tuples(changed)
        return Entry(kind, name, qualname, file, module(file), doc, options, declared, presets, changed)

    suite = PACKAGE / "suite"
    parts = [Path(__file__), suite / "hyper.py", *(suite / base for base, _ in _BASES.values())]
    yield from read_cached(folder, kind, parts, read, Form(freeze, thaw))


def _tuples(value: Any) -> Any:
    """JSON values with tuples in place of lists."""
    if isinstance(value, list):
        return tuple(map(_tuples, value))
    return {key: _tuples(item) for key, item in value.items()} if isinstance(value, dict) else value


def _entry_points(kind: Kind) -> Iterator[Entry]:
    """Entry points name a module (`pkg.module`) or a class in it (`pkg.module:Class`)."""
    if not _announced(f"selfbench.{kind}s"):
        return
    from importlib.metadata import entry_points

    for point in entry_points(group=f"selfbench.{kind}s"):
        try:
            spec = importlib.util.find_spec(point.module)
        except ModuleNotFoundError:
            spec = None
        if spec is None or spec.origin is None:
            raise RegistryError(
                f"Entry point '{point.name}' names the module '{point.module}', which is not installed."
            )
        for entry in read_file(kind, Path(spec.origin).resolve(), point.module):
            if not point.attr or point.attr == entry.qualname:
                yield entry


def _announced(group: str) -> bool:
    """Whether an installed distribution may have entry points of `group`: importing the library to ask takes longer."""
    for place in map(Path, dict.fromkeys(sys.path)):
        if place.is_file():
            return True
        with contextlib.suppress(OSError), os.scandir(place) as found:
            for item in found:
                if item.name.endswith((".dist-info", ".egg-info")):
                    with contextlib.suppress(OSError):
                        if group.encode() in Path(item.path, "entry_points.txt").read_bytes():
                            return True
    return False


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
            base_file, _ = _BASES.get(ast.unparse(base).split(".")[-1], (None, None))
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
    tree = ast.parse((PACKAGE / "suite" / base_file).read_text(encoding="utf-8"))
    bases = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name in _BASES]
    return tuple(item for node in bases for item in _hypers(node))


def _hypers(node: ast.ClassDef) -> Iterator[Hyper]:
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.value, ast.Call) and _called(item.value) == "hyper":
            call = item.value
            values = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
            if values.get("choices") is not None:
                values["choices"] = tuple(values["choices"])
            yield Hyper(str(_target(item)), ast.literal_eval(call.args[0]), **values)


def _called(call: ast.Call) -> str:
    return ast.unparse(call.func).split(".")[-1]


def _target(item: ast.Assign | ast.AnnAssign) -> str | None:
    target = item.targets[0] if isinstance(item, ast.Assign) else item.target
    return target.id if isinstance(target, ast.Name) else None


def _import_file(file: Path) -> Any:
    """Import a file of `$SELFBENCH_PATH` under a name of its own."""
    name = f"selfbench_path_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
