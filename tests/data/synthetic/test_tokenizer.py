"""The tiny tokenizer: whole words, single digits, any text, and a template that knows the
assistant's tokens.
"""

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from m3.data.synthetic.suite import FAMILIES, draw_picture
from m3.data.synthetic.tokenizer import PAD, TURN_END, TURN_START, build_tokenizer
from m3.data.synthetic.vocabulary import COLOURS, SHAPES, WORDS
from m3.processing.chat_template import IMAGE_TOKEN


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def test_the_same_tokenizer_every_time(tokenizer: PreTrainedTokenizerFast) -> None:
    assert build_tokenizer().backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert len(tokenizer) < 640


def test_special_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.convert_tokens_to_ids([PAD, TURN_START, TURN_END, IMAGE_TOKEN]) == [0, 1, 2, 3]
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token) == (PAD, TURN_END, None)
    assert tokenizer(f"{IMAGE_TOKEN}\n{TURN_END}").input_ids[0::2] == [3, 2]


def test_words_are_one_token_and_digits_stand_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    for word in (*COLOURS, *SHAPES, *WORDS, "yes", "no"):
        assert len(tokenizer(word).input_ids) == 1, word
    assert tokenizer.convert_ids_to_tokens(tokenizer("4 7 2").input_ids) == [
        "4",
        "Ġ",
        "7",
        "Ġ",
        "2",
    ]
    assert tokenizer.convert_ids_to_tokens(tokenizer("red circle").input_ids) == ["red", "Ġcircle"]
    assert len(tokenizer("1234").input_ids) == 4


@pytest.mark.parametrize("family", FAMILIES)
def test_a_question_takes_one_token_per_word_and_mark(
    tokenizer: PreTrainedTokenizerFast, family: str
) -> None:
    for question in draw_picture("test", family, 0, 0).questions:
        words = question.text.split()
        assert len(tokenizer(question.text).input_ids) == len(words) + 1, question.text


@pytest.mark.parametrize(
    "text", ["Grüße, 漢字!", "  two\n\nlines\t", "What is 12345 + 6?", "🙂", ""]
)
def test_any_text_survives(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def chat(as_items: bool) -> list[dict[str, object]]:
    turns = [("user", f"{IMAGE_TOKEN}\nRead the number."), ("assistant", "4 7 2")]
    turns += [("user", "Is the background red?"), ("assistant", "no")]
    messages: list[dict[str, object]] = []
    for role, text in turns:
        items: list[dict[str, str]] = [{"type": "image"}] if IMAGE_TOKEN in text else []
        items.append({"type": "text", "text": text.removeprefix(f"{IMAGE_TOKEN}\n")})
        messages.append({"role": role, "content": items if as_items else text})
    return messages


@pytest.mark.parametrize("as_items", [False, True])
def test_template_and_assistant_mask(tokenizer: PreTrainedTokenizerFast, as_items: bool) -> None:
    expected = (
        "<|im_start|>user\n<image>\nRead the number.<|im_end|>\n<|im_start|>assistant\n4 7 "
        "2<|im_end|>\n"
        "<|im_start|>user\nIs the background red?<|im_end|>\n<|im_start|>assistant\nno<|im_end|>\n"
    )
    assert tokenizer.apply_chat_template(chat(as_items), tokenize=False) == expected
    encoded = tokenizer.apply_chat_template(
        chat(as_items), return_dict=True, return_assistant_tokens_mask=True
    )
    assert encoded["input_ids"] == tokenizer(expected).input_ids
    trained = [
        token
        for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
        if mask
    ]
    assert tokenizer.decode(trained) == "4 7 2<|im_end|>no<|im_end|>"


def test_generation_prompt_is_the_prefix_of_a_trained_turn(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    messages = chat(as_items=True)
    prompt = tokenizer.apply_chat_template(
        messages[:1], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    encoded = tokenizer.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True
    )
    assert encoded["input_ids"][: len(prompt)] == prompt
    assert encoded["assistant_masks"][: len(prompt) + 1] == [0] * len(prompt) + [1]


def test_round_trip(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert (loaded.pad_token_id, loaded.eos_token_id, loaded.padding_side) == (0, 2, "left")
    assert loaded.apply_chat_template(chat(True), tokenize=False) == tokenizer.apply_chat_template(
        chat(True), tokenize=False
    )
    assert loaded("Grüße 12 <image>").input_ids == tokenizer("Grüße 12 <image>").input_ids
