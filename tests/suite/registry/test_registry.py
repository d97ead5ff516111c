"""Registrations are read from source files: what is read is what is imported, and what is amiss is said loudly."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from selfbench.suite import registry
from selfbench.suite.check import partners
from selfbench.suite.errors import UsageError
from selfbench.suite.hyper import check_value
from selfbench.suite.registry import PACKAGE, RegistryError, entries, get, register_method, register_task
from selfbench.suite.suites import misfit

METHOD = '''
from dataclasses import dataclass

from selfbench import StreamMethod, hyper, register_method


@register_method("{name}", family="self-training", protocol="stream", paper="-")
@dataclass
class {cls}(StreamMethod):
    """{cls} does something."""

    lr: float = hyper(0.1, low=0.01, high=1.0, log=True, help="step size")
    steps: int = hyper(2, low=1, high=4)
    mode: str = hyper("a", choices=["a", "b"])
'''

Write = Callable[..., Path]


def method(name: str = "my-method", cls: str = "MyMethod") -> str:
    return METHOD.format(name=name, cls=cls)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """write("a.py", source, ...): files in a folder that is SELFBENCH_PATH."""

    def call(*files: str) -> Path:
        folder = tmp_path / "path"
        folder.mkdir()
        for name, source in zip(files[::2], files[1::2], strict=True):
            (folder / name).write_text(source)
        monkeypatch.setenv("SELFBENCH_PATH", str(folder))
        return folder

    return call


@pytest.mark.parametrize("kind", ["method", "task"])
def test_the_parsed_view_is_the_imported_one(kind: registry.Kind) -> None:
    """All of them, the toys of the tests included."""
    found = entries(kind)
    assert len(found) > 5 or kind == "task"
    for entry in found.values():
        cls = entry.load()
        assert cls.__selfbench__ == {"kind": kind, "name": entry.name, **entry.options}
        assert (cls.__doc__ or "").split() == entry.doc.split()
        if kind == "method":
            fields = {item.name: item for item in dataclasses.fields(cls)}
            assert {item.name: item.default for item in entry.hypers} == {
                name: item.default for name, item in fields.items()
            }
            assert [item.name for item in entry.hypers] == list(fields)


def test_names_are_sorted_and_every_entry_knows_its_file() -> None:
    for kind in ("method", "task"):
        found = entries(kind)
        assert list(found) == sorted(found)
        for name, entry in found.items():
            assert entry.name == name
            assert f'"{name}"' in entry.file.read_text()
            assert len(entry.source_sha256) == 64


def test_a_file_on_the_path_is_found_without_being_imported(write: Write) -> None:
    folder = write("a.py", "import sys\nsys.modules['imported-by-listing'] = sys\n" + method())
    entry = get("method", "my-method")
    assert "imported-by-listing" not in sys.modules
    assert entry.summary == "MyMethod does something."
    assert (entry.file, entry.protocol, entry.version) == (folder / "a.py", "stream", "1")
    assert entry.options["needs"] == ()
    lr, steps, mode = entry.hypers
    assert (lr.default, lr.low, lr.high, lr.log, lr.help) == (0.1, 0.01, 1.0, True, "step size")
    assert (steps.default, steps.low, steps.high, steps.log) == (2, 1, 4, False)
    assert mode.choices == ("a", "b")
    loaded = entry.load()
    assert sys.modules.pop("imported-by-listing") is sys
    assert loaded is entry.load()
    assert loaded(lr=0.5).lr == 0.5


def test_a_narrower_preset_that_a_method_has_not_is_the_wider_one(write: Write) -> None:
    presets = '{"wide": {"lr": 0.5}, "wide/small": {"lr": 0.25, "steps": 3}}'
    write("a.py", method().replace("    lr", f"    presets = {presets}\n    lr", 1))
    entry = get("method", "my-method")
    rates = {
        name: entry.params(preset=name)["lr"] for name in ("wide", "wide/small", "wide/small/x", "wide/y", "other/x")
    }
    assert rates == {"wide": 0.5, "wide/small": 0.25, "wide/small/x": 0.25, "wide/y": 0.5, "other/x": 0.1}
    assert entry.params({"lr": 0.75}, "wide/y")["lr"] == 0.75
    assert entry.params(preset="wide/y")["steps"] == 2


def test_the_nearest_name_is_proposed() -> None:
    with pytest.raises(UsageError, match=r"no method 'tnet'.*Did you mean 'tent'\?.*selfbench list methods"):
        get("method", "tnet")
    with pytest.raises(UsageError, match=r"no task 'toy-straem'.*Did you mean 'toy-stream'\?"):
        get("task", "toy-straem")
    with pytest.raises(UsageError, match=r"no task 'xyzzy'\. `selfbench list tasks`"):
        get("task", "xyzzy")


def test_two_files_with_one_name_are_named_both(write: Write) -> None:
    write("a.py", method(cls="One"), "b.py", method(cls="Two"))
    with pytest.raises(RegistryError, match=r"registered twice: by One in .*a\.py and by Two in .*b\.py"):
        entries("method")


def test_a_file_cannot_take_the_name_of_a_method_of_the_package(write: Write) -> None:
    write("mine.py", method("tent", "Mine"))
    with pytest.raises(RegistryError, match=r"'tent' is registered twice: by Tent in .*tent\.py and by Mine in"):
        entries("method")


def test_one_file_may_be_named_twice(write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Through its folder, by itself, and relative to where the command is called: still one registration."""
    folder = write("a.py", method())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SELFBENCH_PATH", os.pathsep.join([str(folder), str(folder / "a.py"), "path/a.py", ""]))
    assert get("method", "my-method").file == folder / "a.py"


def test_a_file_of_the_package_may_be_named_by_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFBENCH_PATH", str(PACKAGE / "methods" / "self_training" / "tent.py"))
    assert get("method", "tent").qualname == "Tent"


def test_a_path_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SELFBENCH_PATH", str(tmp_path / "nowhere"))
    with pytest.raises(RegistryError, match=r"SELFBENCH_PATH names '.*nowhere', which does not exist"):
        entries("method")


HEAD = '@register_method("x", '


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("def f(:\n  register_method()\n", r"bad\.py, line 1: "),
        (HEAD + 'family=FAMILY, protocol="stream", paper="-")\nclass X: pass', r"line 1: .*must be literals"),
        ('@register_method(NAME, family="f", protocol="stream", paper="-")\nclass X: pass', "must be literals"),
        (HEAD + 'family="f", protocol="stream", paper="-", **more)\nclass X: pass', "must be literals"),
        (HEAD + 'family="f", protocol="stream", paper="-")\nclass X:\n  a: int = hyper(len("x"))', "must be literals"),
        (HEAD + 'family="f", protocol="stream", paper="-")\nclass X:\n  a: int = hyper(1, lo=2)', "'lo'"),
        (
            HEAD + 'family="f", protocol="stream", paper="-")\nclass X:\n  a: int = hyper(1, asks=("imges",))',
            "'a' asks for .*'imges'.*, which is no tuple of needs or outputs",
        ),
        (
            HEAD + 'family="f", protocol="stream", paper="-")\nclass X:\n  a: str = hyper("b", choices=("b",), '
            'asks={"c": ("images",)})',
            "'a' has no choice 'c'",
        ),
        (
            HEAD + 'family="f", protocol="stream", paper="-")\nclass X:\n  a: str = hyper("b", choices=("b",), '
            'asks=("images",))',
            "asks of 'a' must map choices to tuples",
        ),
        (HEAD + 'family="f", protocol="steam", paper="-")\nclass X: pass', "one of stream, adaptation.*got 'steam'"),
        (HEAD + 'protocol="stream", paper="-")\nclass X: pass', "missing a required argument: 'family'"),
        (HEAD + 'family="f", protocol="stream", paper="-", colour=1)\nclass X: pass', "unexpected.*'colour'"),
        (
            HEAD + 'family="f", protocol="stream", paper="-", needs="batch-norm")\nclass X: pass',
            "needs must be a tuple",
        ),
        ('@register_method("a/b", family="f", protocol="stream", paper="-")\nclass X: pass', "joined by '-'.*'a/b'"),
        ('@register_method(3, family="f", protocol="stream", paper="-")\nclass X: pass', "joined by '-', got 3"),
        ("x = '\0'  # register_method(\n", r"bad\.py"),
    ],
)
def test_a_registration_amiss_is_named_with_file_and_line(write: Write, source: str, says: str) -> None:
    write("bad.py", source)
    with pytest.raises(RegistryError, match=says):
        entries("method")


def test_a_file_that_is_no_text_is_named(write: Write) -> None:
    folder = write("good.py", method())
    (folder / "latin.py").write_bytes('# café\nregister_method("x")'.encode("latin-1"))
    with pytest.raises(RegistryError, match=r"latin\.py cannot be read"):
        entries("method")


def test_a_file_without_registrations_may_be_anything(write: Write) -> None:
    """Only files that register something are parsed."""
    write("notes.py", "this is no Python\n", "a.py", method())
    assert "my-method" in entries("method")


def test_the_decorators_refuse_an_unknown_protocol_too() -> None:
    with pytest.raises(RegistryError, match="unknown protocol 'steam'"):
        register_method("x", family="f", protocol="steam", paper="-")
    with pytest.raises(RegistryError, match="unknown protocol 'steam'"):
        register_task("x", protocol="steam", version="1", metric="error", title="t", budget={"limit": 1}, data=())


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, points: str, name: str) -> None:
    """An installed distribution with entry points, as its metadata stands on disk."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(str(folder))
    # Entries are remembered by search path: a path of its own makes them be read anew.
    monkeypatch.setenv("SELFBENCH_PATH", str(folder / "empty"))
    (folder / "empty").mkdir()


def test_installed_entry_points_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "selfbench_plugin_one"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "both.py").write_text(method("plug-one", "One") + method("plug-two", "Two"))
    (package / "other.py").write_text(method("plug-three", "Three") + method("plug-four", "Four"))
    points = (
        "[selfbench.methods]\nall = selfbench_plugin_one.both\nthree = selfbench_plugin_one.other:Three\n"
        "[selfbench.tasks]\n"
    )
    install(tmp_path, monkeypatch, points, "plugin_one")
    found = entries("method")
    assert {"plug-one", "plug-two", "plug-three"} <= found.keys()
    assert "plug-four" not in found
    assert "selfbench_plugin_one.both" not in sys.modules
    loaded = found["plug-three"].load()
    assert loaded.__module__ == "selfbench_plugin_one.other"
    assert loaded.__selfbench__["name"] == "plug-three"


@pytest.mark.parametrize("module", ["selfbench_plugin_gone", "selfbench_plugin_gone.deeper"])
def test_an_entry_point_to_nothing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    install(tmp_path, monkeypatch, f"[selfbench.methods]\nlost = {module}\n", "plugin_gone")
    with pytest.raises(RegistryError, match=rf"Entry point 'lost' names the module '{module}', which is not installed"):
        entries("method")


def test_given_hyper_parameters_go_over_the_defaults(write: Write) -> None:
    write("a.py", method())
    entry = get("method", "my-method")
    assert entry.params() == {"lr": 0.1, "steps": 2, "mode": "a"}
    given = entry.params({"lr": 1, "steps": 4})
    assert given == {"lr": 1.0, "steps": 4, "mode": "a"}
    assert type(given["lr"]) is float


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"lr": 0.001}, r"'lr' must lie in \[0.01, 1.0\], got 0.001"),
        ({"lr": 1.5}, "must lie in"),
        ({"lr": float("nan")}, "must lie in"),
        ({"lr": "fast"}, r"'lr' must be float, got 'fast' \(str\)"),
        ({"lr": True}, r"must be float, got True \(bool\)"),
        ({"steps": 2.0}, r"'steps' must be int, got 2.0 \(float\)"),
        ({"steps": 5}, r"must lie in \[1, 4\]"),
        ({"mode": "c"}, "'mode' must be one of 'a', 'b', got 'c'"),
        ({"stepz": 1}, r"no hyper-parameter 'stepz' \(it has: lr, steps, mode\)\. Did you mean 'steps'\?"),
    ],
)
def test_hyper_parameters_amiss_are_explained(write: Write, params: dict, says: str) -> None:
    write("a.py", method())
    with pytest.raises(UsageError, match=says) as caught:
        get("method", "my-method").params(params)
    assert "my-method" in str(caught.value)


def test_a_method_without_hyper_parameters_says_so() -> None:
    with pytest.raises(UsageError, match=r"'source' has no hyper-parameter 'lr' \(it has: none\)"):
        get("method", "source").params({"lr": 1.0})


@pytest.mark.parametrize("value", [True, False])
def test_booleans_have_no_bounds(value: bool) -> None:
    assert check_value("m", "flag", value, default=True, rule={"low": 5, "high": 6}) is value


def test_adaptation_methods_inherit_the_scale_of_the_learning_rate() -> None:
    scale = get("method", "supervised").hypers[0]
    assert (scale.name, scale.default, scale.low, scale.high, scale.log) == ("lr_scale", 1.0, 0.1, 10.0, True)
    assert get("method", "supervised").params({"lr_scale": 2})["lr_scale"] == 2.0
    assert all(item.name != "lr_scale" for item in get("method", "tent").hypers)


def test_partners_are_those_that_fit() -> None:
    assert {"source", "norm", "tent"} <= set(partners(get("task", "toy-stream")))
    assert "fixmatch" not in partners(get("task", "toy-stream"))
    assert "toy-adaptation" in partners(get("method", "fixmatch"))
    assert "toy-stream" not in partners(get("method", "fixmatch"))


def test_why_a_pair_does_not_fit(write: Write) -> None:
    write("a.py", method().replace('paper="-"', 'paper="-", needs=("batch-norm", "source-data")'))
    needy = get("method", "my-method")
    task = next(item for item in entries("task").values() if item.protocol == "stream")
    task = dataclasses.replace(task, options={**task.options, "grants": ("batch-norm",)})
    assert misfit(needy, task) == f"method 'my-method' needs source-data, which task '{task.name}' does not grant."
    other = get("method", "supervised")
    assert "protocol adaptation" in misfit(other, task)
    assert "protocol stream" in misfit(other, task)


VARIANTS = '''
from selfbench import AdaptationTask, register_task

@register_task("fruit", protocol="adaptation", version="2", metric="accuracy", title="Fruit", budget={"limit": 10},
               data=("digits",), variants={"fruit-two": {"title": "Two", "set": {"n": 2, "kinds": ["a", "b"]}},
                                           "fruit-old": {"version": "1", "bundle": "old"}})
class Fruit(AdaptationTask):
    """Apples."""
    n = 5
    kinds = ()
'''


def test_variants_are_tasks_of_the_same_class_and_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fruit.py").write_text(VARIANTS)
    monkeypatch.setenv("SELFBENCH_PATH", str(tmp_path))
    fruit, two, old = (registry.get("task", name) for name in ("fruit", "fruit-two", "fruit-old"))
    assert "variants" not in fruit.options
    assert (fruit.options["bundle"], two.options["bundle"], old.options["bundle"]) == (None, "fruit", "old")
    assert two.options == {**fruit.options, "bundle": "fruit", "title": "Two"}
    assert (two.version, old.version) == ("2", "1")
    assert (fruit.load().n, two.load().n, old.load().n) == (5, 2, 5)
    assert issubclass(two.load(), fruit.load())
    assert two.load().kinds in (["a", "b"], ("a", "b"))
    assert two.load().__selfbench__ == {"kind": "task", "name": "fruit-two", **two.options}
    assert fruit.load().__selfbench__["name"] == "fruit"
    assert two.doc == two.load().__doc__ == "Apples."


@pytest.mark.parametrize(
    ("change", "to", "says"),
    [
        ('"fruit-two": {"title": "Two"', '"fruit-two": {"titel": "Two"', "variant 'fruit-two'.*titel"),
        ('"fruit-two"', '"Fruit Two"', "lower case words"),
        ('"set": {"n": 2', '"set": {"m": 2', "sets 'm', which its class has not"),
    ],
)
def test_variants_that_cannot_be_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, to: str, says: str
) -> None:
    (tmp_path / "fruit.py").write_text(VARIANTS.replace(change, to))
    monkeypatch.setenv("SELFBENCH_PATH", str(tmp_path))
    with pytest.raises(registry.RegistryError, match=says):
        registry.get("task", "fruit-two").load()
