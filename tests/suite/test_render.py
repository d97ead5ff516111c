"""The site as its readers get it: whole, safe, the same from the same records, and built all or nothing."""

from __future__ import annotations

import csv
import html.parser
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from selfbench.suite.board import formats
from selfbench.suite.board.catalogue import Catalogue
from selfbench.suite.errors import UsageError
from selfbench.suite.files import locked
from selfbench.suite.record import Record, encode
from selfbench.suite.render import MARKER, build_site, pages, site
from selfbench.suite.render.environment import prose
from selfbench.suite.spec import MethodRef, TaskRef
from selfbench.suite.store import Store

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
generated = importlib.import_module("generated_records")

COUNT = 330
EVIL_METHOD = "=<img src=x onerror=alert(1)>\"'&"
EVIL_TASK = "--><svg onload=alert(2)>"
VOID = {"meta", "link", "br", "img", "input", "hr"}
MAY_LINK = ("https://arxiv.org/", "https://doi.org/")


def put(root: Path, record: Record) -> None:
    path = Store(root).path(record.spec)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(record))


def hostile(seed: int) -> Record:
    """A record every text of which tries to break out of its place; nobody registers its method or task."""
    record = generated.make_record("digits-c-continual", "tent", 0, seed)
    text = "</td><script>alert(3)</script>{{ 7*7 }}"
    spec = record.spec.model_copy(
        update={
            "task": TaskRef(name=EVIL_TASK, version=text),
            "method": MethodRef(name=EVIL_METHOD, version="1", params={text: text}),
        }
    )
    return record.model_copy(
        update={
            "spec": spec,
            "run_id": spec.run_id,
            "groups": {text: {text: 0.5}, "error": {text: 0.5, "fog": 0.25}},
            "metrics": {**record.metrics, text: 0.5},
            "diagnostics": {text: 0.5},
            "provenance": record.provenance.model_copy(
                update={"command": text, "platform": text, "packages": {text: text}, "created": text}
            ),
        }
    )


def fill(root: Path, jobs: list[tuple[str, str, int, int]]) -> None:
    for job in jobs:
        put(root, generated.make_record(*job))
    for seed in range(3):
        put(root, hostile(seed))
    broken = hostile(3).model_copy(update={"status": "failed", "reason": "<script>alert(4)</script>", "metrics": {}})
    put(root, broken)


@pytest.fixture(scope="module")
def suites() -> list[object]:
    """One full suite, one partly run, one without any record."""
    return [
        generated.generated_suite("standard"),
        generated.generated_suite("more", (3, 4, 5, 6), 2),
        generated.generated_suite("empty", (90, 91)),
    ]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    fill(root, list(generated.plan(COUNT)))
    return root


FEW = 30


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small results folder, for what does not depend on what is in it."""
    root = tmp_path_factory.mktemp("few")
    generated.write_records(root, FEW)
    return root


@pytest.fixture(scope="module")
def built(results: Path, suites: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("web") / "site"
    with Store(results).index() as index:
        assert not index.broken()
        summary = build_site(index, suites, out, catalogue=generated.generated_catalogue())
    assert summary.runs == COUNT + 4
    return out


class Checker(html.parser.HTMLParser):
    """Collects what a page holds, and what is wrong with its form."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.problems: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.text: list[str] = []
        self.feed(text)
        self.close()
        self.problems += [f"<{tag}> is not closed" for tag in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.problems += [f"<{tag}> has {name}" for name in given if name.startswith("on") or name == "style"]
        self.problems += [f"<{tag}> repeats an attribute"] * (len(given) != len(attrs))
        if tag == "script" and "src" not in given:
            self.problems.append("inline script")
        if tag == "th" and given.get("scope") not in ("row", "col"):
            self.problems.append("<th> without scope")
        if tag == "svg" and given.get("role") != "img" and given.get("aria-hidden") != "true":
            self.problems += ["a chart is neither named nor hidden"] * ("svg" not in self.open[:-1])
        if given.get("id"):
            self.ids.append(str(given["id"]))
        if tag in ("a", "use") and given.get("href"):
            self.links.append(str(given["href"]))
        if tag in ("script", "img", "iframe", "link", "source", "object", "embed", "form"):
            self.loads.append(str(given.get("src") or given.get("href") or given.get("data") or given.get("action")))

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID or not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> closes nothing")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def checked(built: Path) -> dict[Path, Checker]:
    return {path: Checker(path.read_text(encoding="utf-8")) for path in sorted(built.rglob("*.html"))}


def texts(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_every_kind_of_page_is_there(built: Path) -> None:
    names = texts(built).keys()
    for name in (
        "index.html",
        "rules.html",
        "suites/standard.html",
        "suites/empty.html",
        "tasks/r8-5.html",
        "methods/cotta.html",
        "runs/index.html",
        "data/runs.csv",
        "data/suite-standard.json",
        "data/task-r8-5.csv",
        MARKER,
    ):
        assert name in names
    runs = [name for name in names if re.fullmatch(r"runs/[0-9a-f]{16}\.html", name)]
    assert len(runs) == COUNT + 4


def test_pages_are_well_formed_and_carry_no_code(checked: dict[Path, Checker]) -> None:
    wrong = {path.name: page.problems[:3] for path, page in checked.items() if page.problems}
    assert wrong == {}


def test_ids_are_unique_on_their_page(checked: dict[Path, Checker]) -> None:
    assert [path.name for path, page in checked.items() if len(set(page.ids)) != len(page.ids)] == []


def test_every_internal_link_leads_somewhere(built: Path, checked: dict[Path, Checker]) -> None:
    dead = []
    for path, page in checked.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            there = target.is_file() and target.is_relative_to(built)
            if there and parts.fragment and target in checked:
                there = parts.fragment in checked[target].ids
            if not there:
                dead.append((path.name, link))
    assert dead == []


def test_nothing_is_loaded_from_elsewhere(checked: dict[Path, Checker]) -> None:
    for page in checked.values():
        assert all(not urlsplit(load).scheme and not load.startswith("//") for load in page.loads)
        assert all(not urlsplit(link).scheme or link.startswith(MAY_LINK) for link in page.links)


def test_no_page_names_an_outside_address_but_papers(built: Path) -> None:
    for name, data in texts(built).items():
        for address in re.findall(rb"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}[^\s\"'<)]*", data):
            assert address.decode().startswith((*MAY_LINK, "http://www.w3.org/2000/svg")), name


def test_hostile_texts_stay_texts(checked: dict[Path, Checker]) -> None:
    seen = "".join("".join(page.text) for page in checked.values())
    for text in (EVIL_METHOD, EVIL_TASK, "<script>alert(3)</script>", "<script>alert(4)</script>", "{{ 7*7 }}"):
        assert text in seen
    assert not {"img", "iframe", "form", "object"} & set().union(*(page.tags for page in checked.values()))


def test_every_page_has_the_strict_policy_before_anything_loads(built: Path) -> None:
    for path in built.rglob("*.html"):
        head = path.read_text(encoding="utf-8").split("<link", 1)[0]
        assert "default-src 'none'" in head
        assert "unsafe" not in head


def test_pages_are_complete_without_scripts(built: Path, checked: dict[Path, Checker]) -> None:
    """No control that needs a script, nothing hidden until one runs, the whole board in the page itself."""
    for path, page in checked.items():
        assert not {"button", "input", "template", "noscript"} & page.tags, path
    index = "".join(checked[built / "index.html"].text)
    for name in generated.METHODS:
        assert name in index


def test_unregistered_names_have_pages(built: Path, checked: dict[Path, Checker]) -> None:
    for folder, name in (("methods", EVIL_METHOD), ("tasks", EVIL_TASK)):
        page = checked[built / folder / f"{pages.slug(name)}.html"]
        assert "known from its records only" in "".join(page.text)


def test_failed_runs_say_what_happened(built: Path) -> None:
    records = [generated.make_record(*job) for job in generated.plan(COUNT)]
    failed = [record.run_id for record in records if record.status != "ok"]
    assert failed
    for run_id in failed:
        assert 'class="result bad"' in (built / "runs" / f"{run_id}.html").read_text(encoding="utf-8")
    assert "timeout" in (built / "index.html").read_text(encoding="utf-8")


def test_run_pages_show_the_command_and_stay_light(built: Path) -> None:
    record = generated.make_record("cifar10-jpeg-c-continual", "cotta", 0, 0)
    path = built / "runs" / f"{record.run_id}.html"
    assert record.provenance.command in path.read_text(encoding="utf-8")
    assert path.stat().st_size < 12_000


def test_own_code_stays_small() -> None:
    assert sum(path.stat().st_size for path in (site.SITE / "static").glob("*.js")) < 10_000


def test_downloads_hold_the_board(built: Path) -> None:
    data = json.loads((built / "data" / "suite-standard.json").read_text(encoding="utf-8"))
    assert {task["task"] for task in data["tasks"]} == set(generated.TASKS)
    with (built / "data" / "runs.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == COUNT + 4
    assert {row["method"] for row in rows if row["method"].startswith("'=")} == {f"'{EVIL_METHOD}"}


def test_streams_show_curves_and_domains(built: Path) -> None:
    text = (built / "tasks" / "cifar10-jpeg-c-continual.html").read_text(encoding="utf-8")
    assert "By domain" in text
    assert "gaussian noise" in text
    assert text.count('class="panel ') >= 8


def test_equal_records_give_equal_bytes(
    results: Path, built: Path, suites: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another folder, other times, the files written in another order, pages made in worker processes."""
    again = tmp_path / "elsewhere"
    fill(again, list(generated.plan(COUNT))[::-1])
    monkeypatch.setattr(site, "_PARALLEL_FROM", 0)
    with Store(again).index() as index:
        build_site(index, suites, tmp_path / "site", catalogue=generated.generated_catalogue())
    assert texts(tmp_path / "site") == texts(built)


def test_a_rebuild_replaces_the_site(few: Path, tmp_path: Path) -> None:
    out = tmp_path / "site"
    catalogue = generated.generated_catalogue()
    with Store(few).index() as index:
        build_site(index, [generated.generated_suite("standard")], out, catalogue=catalogue)
        assert (out / "suites" / "standard.html").is_file()
        build_site(index, [], out, catalogue=catalogue)
    assert not (out / "suites").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_a_failed_build_leaves_the_old_site(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "site"
    catalogue = generated.generated_catalogue()

    def interrupted(self: object) -> Iterator[pages.Page]:
        raise KeyboardInterrupt

    with Store(few).index() as index:
        build_site(index, [], out, catalogue=catalogue)
        before = texts(out)
        monkeypatch.setattr(pages.Pages, "all", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_site(index, [], out, catalogue=catalogue)
    assert texts(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_a_build_that_died_between_its_two_renames_is_mended(few: Path, tmp_path: Path) -> None:
    out = tmp_path / "site"
    with Store(few).index() as index:
        build_site(index, [], out, catalogue=generated.generated_catalogue())
        out.rename(tmp_path / ".site.old")
        site._recover(out)
    assert (out / MARKER).is_file()


def test_other_peoples_folders_are_left_alone(few: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with Store(few).index() as index, pytest.raises(UsageError, match="holds no site"):
        build_site(index, [], tmp_path, catalogue=Catalogue())
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_two_builds_of_one_site_do_not_meet(few: Path, tmp_path: Path) -> None:
    out = tmp_path / "site"
    with locked(site._lock(out)), Store(few).index() as index, pytest.raises(UsageError, match="under way"):
        build_site(index, [], out, catalogue=Catalogue())


def test_a_site_without_records_says_how_to_make_some(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    with Store(tmp_path / "results").index() as index:
        build_site(index, [generated.generated_suite("quick")], tmp_path / "site", catalogue=Catalogue())
    for name in ("index.html", "suites/quick.html", "runs/index.html"):
        assert "selfbench run --suite quick" in (tmp_path / "site" / name).read_text(encoding="utf-8")


def test_docstrings_set_code_between_backticks_and_escape_the_rest() -> None:
    assert prose("`a<b` and a < `b`") == "<code>a&lt;b</code> and a &lt; <code>b</code>"
    assert prose("a lone ` stays") == "a lone ` stays"


def test_the_page_of_a_task_tells_what_its_preparation_took(few: Path, tmp_path: Path) -> None:
    with Store(few).index() as index:
        run = index.summaries()[0]
        store = Store(tmp_path / "results")
        for record in index.records():
            if record.spec.task.name == run.task:
                store.write(
                    record.model_copy(update={"cost": record.cost.model_copy(update={"preparation_seconds": 95.0})})
                )
    catalogue = generated.generated_catalogue()
    with store.index() as index:
        build_site(index, [generated.generated_suite("quick")], tmp_path / "site", catalogue=catalogue)
    page = (tmp_path / "site" / "tasks" / f"{run.task}.html").read_text(encoding="utf-8")
    assert f"Prepared once, for all runs</dt><dd>in {formats.duration(95.0)}" in page


def test_progress_ends_at_all_runs(few: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with Store(few).index() as index:
        build_site(index, [], tmp_path / "site", lambda done, total: seen.append((done, total)), Catalogue())
    assert seen[-1] == (FEW, FEW)


def test_the_list_of_runs_is_cut_into_pages(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "RUNS_PER_PAGE", 10)
    with Store(few).index() as index:
        build_site(index, [], tmp_path / "site", catalogue=Catalogue())
    listed = list((tmp_path / "site" / "runs").glob("page-*.html"))
    assert len(listed) == 2
    rows = sum(path.read_text().count('<th scope="row">') for path in [*listed, tmp_path / "site/runs/index.html"])
    assert rows == FEW


def test_board_and_site_import_neither_torch_nor_plotting() -> None:
    code = (
        "import sys, selfbench.suite.render, selfbench.suite.board.text; "
        "print([name for name in ('torch', 'matplotlib', 'pandas', 'scipy.stats') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_verbs_of_the_command_line(cli, results: Path) -> None:
    shown = cli("board", "--results", results, "-t", "r8-5")
    assert shown.code == 0
    assert "fixmatch" in shown.out
    data = json.loads(cli("board", "--results", results, "--json").out)
    assert {board["task"] for board in data} == {*generated.TASKS, EVIL_TASK}
    wrong = cli("board", "--results", results, "-t", "r8")
    assert wrong.code == 2
    assert "Did you mean 'r8-5'?" in wrong.err
    nowhere = cli("site", "serve", "--out", "nowhere")
    assert nowhere.code == 2
    assert "selfbench site build --out nowhere" in nowhere.err
