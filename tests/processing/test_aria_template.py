"""Aria's chat format: the published prompts, both ways to write a message, and what training
learns of it.
"""

import pytest
from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from m3.processing.aria_template import aria_template

SHOWN = "<fim_prefix><|img|><fim_suffix>"


def render(*messages: dict, start_answer: bool = False) -> str:
    rendered, _ = render_jinja_template(
        conversations=[list(messages)],
        chat_template=aria_template(),
        add_generation_prompt=start_answer,
    )
    return rendered[0]


def user(*content: str | None) -> dict:
    parts = [
        {"type": "image"} if part is None else {"type": "text", "text": part} for part in content
    ]
    return {"role": "user", "content": parts}


def test_published_prompts() -> None:
    assert render(user(None, "describe the image"), start_answer=True) == (
        f"<|im_start|>user\n{SHOWN}describe the image<|im_end|>\n<|im_start|>assistant\n"
    )
    said = {"role": "assistant", "content": "This is a beautiful landscape."}
    chat = (
        user(None, None, "What's in these?"),
        said,
        user("Can you describe it in more detail?\n"),
    )
    assert render(*chat) == (
        f"<|im_start|>user\n{SHOWN}{SHOWN}What's in these?<|im_end|>\n"
        "<|im_start|>assistant\nThis is a beautiful landscape.<|im_end|>\n"
        "<|im_start|>user\nCan you describe it in more detail?\n<|im_end|>\n"
    )


@pytest.mark.parametrize(
    "content", ["<|img|>\nWhat?", "<|img|>What?", f"{SHOWN}What?", f"{SHOWN}\nWhat?"]
)
def test_strings_and_parts_spell_the_same_prompt(content: str) -> None:
    assert render({"role": "user", "content": content}) == render(user(None, "What?"))


def test_training_learns_the_answer_and_its_end() -> None:
    chat = [user(None, "What?"), {"role": "assistant", "content": "A hat."}]
    rendered, spans = render_jinja_template(
        conversations=[chat], chat_template=aria_template(), return_assistant_tokens_mask=True
    )
    assert [rendered[0][start:end] for start, end in spans[0]] == ["A hat.<|im_end|>"]


def test_other_parts_are_refused() -> None:
    with pytest.raises(
        TemplateError, match='a message part has type "video"; expected "text" or "image"'
    ):
        render({"role": "user", "content": [{"type": "video"}]})
