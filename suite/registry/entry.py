"""What is registered: a method or a task as its source file declares it, not imported before it is loaded."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UsageError, did_you_mean
from ..hyper import check_value
from .registration import Kind, RegistryError, mark


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
    asks: Mapping[Any, tuple[str, ...]] | tuple[str, ...] = ()


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
        return mark(self.kind, self.name, dict(self.options))(type(cls.__name__, (cls,), own))

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
