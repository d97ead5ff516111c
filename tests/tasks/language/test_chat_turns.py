"""Earlier turns of a chat, as its template writes them, and worked problems as such turns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from selfbench.suite.errors import UsageError
from selfbench.suite.protocols.policy_examples import Example
from selfbench.tasks.language.addition_smol import AdditionSmol
from selfbench.tasks.language.models import chat_turn
from selfbench.tasks.language.multiple_choice import MultipleChoice


class Sums(AdditionSmol):
    model_name = "qwen25-05b-instruct"


def test_a_turn_lies_between_a_reply_and_the_next_words(tiny_hub_model: Path) -> None:
    assert chat_turn(tiny_hub_model, "Be brief.") == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>user\n",
    )  # fmt: skip
    assert chat_turn(tiny_hub_model, "") == ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>user\n")


def test_a_template_that_rewrites_earlier_turns_is_refused(tiny_hub_model: Path) -> None:
    template = "{% for turn in messages if turn.role == 'user' %}<{{ turn.content }}>{% endfor %}:"
    (tiny_hub_model / "chat_template.jinja").unlink(missing_ok=True)
    file = tiny_hub_model / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": template}))
    with pytest.raises(UsageError, match=r"a turn that has been replied to otherwise.*neither `shots` nor `attempts`"):
        chat_turn(tiny_hub_model, "")


def test_the_systems_words_stand_once(tiny_hub_model: Path) -> None:
    system = "<|im_start|>system\nAnswer with a number.<|im_end|>\n"
    user, assistant, end = "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>\n"
    one, two, three = (f"{system}{user}{words}{end}{assistant}" for words in ("1 + 1?", "2 + 2?", "3 + 3?"))
    found = Sums().preceded(three, [Example(one, "2"), Example(two, "4")])
    assert found == (
        f"{system}{user}1 + 1?{end}{assistant}2{end}{user}2 + 2?{end}{assistant}4{end}{user}3 + 3?{end}{assistant}"
    )
    assert Sums().preceded(three, []) == three


def test_a_frame_of_its_own_takes_no_template() -> None:
    found = MultipleChoice().preceded("Question: b\nAnswer:", [Example("Question: a\nAnswer:", " yes")])
    assert found == "Question: a\nAnswer: yes\n\nQuestion: b\nAnswer:"
