"""MATH: which answer a response has, in which form, and the task on small files of the published layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from selfbench.suite import registry
from selfbench.suite.bundle import write_bundle
from selfbench.suite.data import Data
from selfbench.suite.errors import DataMissing
from selfbench.suite.places import data_folder
from selfbench.suite.protocols.tokens import CUT_OFF
from selfbench.tasks.language.competition_math import SUBJECTS, CompetitionMath, boxed, plain_form, read_problems


@pytest.mark.parametrize(("text", "expected"), [
    (r"So \boxed{3}.", "3"), (r"\boxed{1} or \boxed{\frac{1}{2}}", r"\frac{1}{2}"), (r"\fbox{4}", "4"),
    (r"Then $\boxed 7$ is it", "7"), (r"\boxed{2", None), ("no box", None), (r"\boxed{}", ""), (r"\boxed3", None),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"), (r"\boxed ", None), (r"\boxed", None), (r"\boxed{1} then \boxed{2", None),
])  # fmt: skip
def test_the_last_box_holds_the_answer(text: str, expected: str | None) -> None:
    assert boxed(text) == expected


@pytest.mark.parametrize("same", [
    (r"\frac{1}{2}", r"\dfrac{1}{2}", r"\tfrac12", "1/2", "0.5", ".5", r"\frac1{2}", r"\frac{1}2 ".strip() + ""),
    ("3", r"3\%", r"\$3", r"3^\circ", r"3^{\circ}", r"3\text{ cm}", "x=3", "x = 3", " 3 "),
    (r"\sqrt{2}", r"\sqrt2"),
    ("(1,2)", r"\left(1, 2\right)", r"(1,\!2)"),
    ("-2/3", r"\frac{-2}{3}"),
])  # fmt: skip
def test_one_answer_has_one_form(same: tuple[str, ...]) -> None:
    forms = {plain_form(answer) for answer in same if answer != r"\frac{1}2"}
    assert len(forms) == 1, forms


@pytest.mark.parametrize(("one", "other"), [("3", "-3"), ("1/3", "0.33"), ("x^2", "x2"), ("12", "1,2"), ("a=b=1", "1")])
def test_other_answers_stay_apart(one: str, other: str) -> None:
    assert plain_form(one) != plain_form(other)


def test_a_response_that_was_cut_off_has_no_answer() -> None:
    task = CompetitionMath()
    assert task.answer(r"so $\boxed{\dfrac12}$") == r"\frac{1}{2}"
    assert task.answer(r"so $\boxed{2}$ and" + CUT_OFF) is None
    assert task.answer("2") is None


@pytest.fixture
def tables(tiny_hub_model: Path, tmp_path: Path) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    root = tmp_path / "data" / "math"
    for subject in SUBJECTS:
        for part, n in (("train", 320), ("test", 80)):
            rows = [
                {
                    "problem": f"{subject} {part} {at}?",
                    "level": "Level 1",
                    "type": subject,
                    "solution": rf"\boxed{{{at}}}",
                }
                for at in range(n)
            ]
            rows += [
                {"problem": f"{subject} both?", "level": "", "type": "", "solution": r"\boxed{1}"},
                {"problem": "open?", "level": "", "type": "", "solution": "no answer"},
            ]
            (root / subject).mkdir(parents=True, exist_ok=True)
            parquet.write_table(pyarrow.Table.from_pylist(rows), root / subject / f"{part}.parquet")
    return root


def test_the_task_on_small_tables(tables: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    data = Data(data_folder())
    assert len(read_problems(data, "test")) == 7 * 81
    task = registry.get("task", "math").load()()
    bundle = write_bundle(tmp_path / "bundle", task.build(data))
    assert bundle.facts["test_problems"] == 500
    public, private = bundle.public(), bundle.private()
    problems = task.problems(bundle, 0)
    assert (len(problems.demonstrations), len(problems.pool), len(problems.test)) == (128, 2048, 500)
    everything = task.prompts(public, np.arange(500 + bundle.facts["training_problems"]))
    assert len(set(everything)) == len(everything), "what stands in both parts is asked once"
    shown = task.prompts(public, problems.demonstrations)
    answers = task.answers(private, problems.demonstrations)
    assert [task.answer(response) for response in problems.responses] == answers
    assert all(prompt.split()[-1] != answer for prompt, answer in zip(shown, answers, strict=True))
    hinted = task.hinted(shown[0], "42")
    assert "? (The answer is 42.)<|im_end|>" in hinted


def test_a_file_that_is_no_table_is_named(tables: Path) -> None:
    (tables / "geometry" / "test.parquet").write_text("torn")
    with pytest.raises(DataMissing, match=r"geometry.test\.parquet"):
        read_problems(Data(data_folder()), "test")
