"""Pieces of text while tokens come: put together they are one decoding of all."""

import random

import pytest
from transformers import PreTrainedTokenizerBase

from m3.data.synthetic.tokenizer import build_tokenizer
from m3.serving.writing import Writing


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    """It falls back on bytes, so a character may be several tokens."""
    return build_tokenizer()


def written(tokenizer: PreTrainedTokenizerBase, ids: list[int], stop: tuple[str, ...] = ()) -> tuple[str, list[str]]:
    writing, pieces = Writing(tokenizer, stop), []
    for token in ids:
        pieces.append(writing.add(token))
        if writing.stopped:
            break
    pieces.append(writing.finish())
    return writing.text, [piece for piece in pieces if piece]


TEXTS = [
    "A plain answer, in words.",
    "  white space around  \n\n",
    "größer, 大きい, 🦊🦊 and on",
    "line one\nline two\n\nline four",
    "",
    "   ",
    "é",
]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_the_text(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole, pieces = written(tokenizer, ids)
    assert whole == "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert all("\ufffd" not in piece for piece in pieces)


@pytest.mark.parametrize("seed", range(20))
def test_pieces_of_any_tokens_are_their_decoding(tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
    """Broken characters and special tokens among them."""
    rng = random.Random(seed)
    ids = [rng.randrange(len(tokenizer)) for _ in range(60)]
    whole, pieces = written(tokenizer, ids)
    assert whole == "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True).strip()


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two three", ("two",), "one"),
        ("one two three", ("three", "two"), "one"),
        ("one two three", ("e t",), "on"),
        ("one two three", ("four",), "one two three"),
        ("one two thr", ("three",), "one two thr"),
        ("one\ntwo", ("\n",), "one"),
        ("one two", ("one",), ""),
    ],
)
def test_a_stop_text_is_never_given_out(
    tokenizer: PreTrainedTokenizerBase, text: str, stop: tuple[str, ...], expected: str
) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole, pieces = written(tokenizer, ids, stop)
    assert whole == "".join(pieces) == expected
