"""Pieces of text while tokens come: put together they are one decoding of all."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from m3.data.synthetic.tokenizer import build_tokenizer
from m3.serving.engine.detokenizer import Writing


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    """It falls back on bytes, so a character may be several tokens."""
    return build_tokenizer()


def written(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], stop: tuple[str, ...] = ()
) -> tuple[str, list[str]]:
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
def test_pieces_of_any_tokens_are_their_decoding(
    tokenizer: PreTrainedTokenizerBase, seed: int
) -> None:
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


def byte_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A vocabulary of single bytes and a few words: byte-level as GPT-2's, or falling back on
    bytes as Llama's.
    """
    if kind == "byte level":
        alphabet = {
            character: n for n, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))
        }
        tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
        tokenizer.pre_tokenizer, tokenizer.decoder = (
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            decoders.ByteLevel(),
        )
    else:
        words = ["<unk>", "▁a", "▁", "b", "'", "ö"]
        vocabulary = {
            word: n for n, word in enumerate(words + [f"<0x{n:02X}>" for n in range(256)])
        }
        tokenizer = Tokenizer(
            models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>")
        )
        steps = [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
        tokenizer.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=["<|end|>", "<|start|>"]
    )


@pytest.mark.parametrize(
    ("kind", "seed"),
    [*(("byte level", n) for n in range(6)), *(("byte fallback", n) for n in range(3))],
)
def test_long_runs_of_broken_bytes_are_their_decoding(kind: str, seed: int) -> None:
    """Not of any bytes with byte fallback: there one wrong byte makes those before it wrong that
    were given out already.
    """
    tokenizer, rng = byte_tokenizer(kind), random.Random(seed)
    first = len(tokenizer) - 2 - 256
    lead = (
        [rng.randrange(first + 128, first + 256) for _ in range(3)]
        if seed < 3
        else list(range(first, first + 256))
    )
    ids = [rng.choice(lead) for _ in range(300)]
    whole, pieces = written(tokenizer, ids)
    assert whole == "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert len(pieces) > 4, "what is sure is given out on the way"


WORDS = [
    "[UNK]",
    "a",
    "b",
    "n",
    "t",
    "s",
    "m",
    "do",
    "it",
    ".",
    "?",
    "!",
    ",",
    "'",
    "n't",
    "'m",
    "'s",
    "'ve",
    "'re",
    "x1",
]


def tidying_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """One that takes spaces before punctuation away when it decodes."""
    if kind == "Unigram":
        pieces = [
            ("[UNK]", 0.0),
            *(("▁" + word, -1.0) for word in WORDS[1:]),
            *((word, -2.0) for word in WORDS[1:]),
        ]
        tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
        tokenizer.pre_tokenizer, tokenizer.decoder = (
            pre_tokenizers.Metaspace(),
            decoders.Metaspace(),
        )
    else:
        words = WORDS + ["##" + word for word in WORDS[1:]]
        vocabulary = {word: n for n, word in enumerate(words)}
        model = models.WordPiece if kind == "WordPiece" else models.WordLevel
        tokenizer = Tokenizer(model(vocab=vocabulary, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        if kind == "WordPiece":
            tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        clean_up_tokenization_spaces=True,
        eos_token="<|end|>",
    )


@pytest.mark.parametrize("kind", ["WordPiece", "Unigram", "WordLevel"])
def test_spaces_that_decoding_takes_away_are_not_streamed(kind: str) -> None:
    tokenizer, rng = tidying_tokenizer(kind), random.Random(5)
    for _ in range(500):
        ids = [rng.randrange(len(tokenizer)) for _ in range(rng.randrange(1, 30))]
        whole, pieces = written(tokenizer, ids)
        assert whole == "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert "a's" in written(tokenizer, tokenizer("a 's it")["input_ids"])[0]


@pytest.mark.parametrize("kind", ["byte level", "byte fallback"])
def test_the_work_of_a_token_is_bounded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever comes: bytes of no character, tokens that decoding leaves out."""
    tokenizer = byte_tokenizer(kind)
    special = tokenizer.convert_tokens_to_ids("<|start|>")
    decode, longest = tokenizer.decode, []

    def counted(ids: list[int], **options: bool) -> str:
        longest.append(len(ids))
        return decode(ids, **options)

    monkeypatch.setattr(tokenizer, "decode", counted)
    writing = Writing(tokenizer, ())
    for token in [*[len(tokenizer) - 3] * 500, *[special] * 500]:
        writing.add(token)
    writing.finish()
    assert max(longest) < 100
    assert len(longest) < 4 * 1000


@pytest.mark.parametrize("stop", ["<|im_end|>", "<|im_start|>", "<pad>", "<image>"])
def test_a_stop_text_that_is_a_special_token_stops(
    tokenizer: PreTrainedTokenizerBase, stop: str
) -> None:
    ids = tokenizer("hello", add_special_tokens=False)["input_ids"]
    world = tokenizer(" world", add_special_tokens=False)["input_ids"]
    writing = Writing(tokenizer, (stop,))
    for token in ids:
        writing.add(token)
    writing.add(tokenizer.convert_tokens_to_ids(stop))
    assert (writing.text, writing.stopped) == ("hello", True)
    assert writing.finish() == ""
    assert written(tokenizer, [*ids, *world], (stop,))[0] == "hello world"


def test_a_stop_text_that_begins_with_a_special_token_stops(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Its special token is no text, and what stands behind it is given out only where the stop
    text does not go on.
    """
    encode = tokenizer("hello <|im_start|>user and on", add_special_tokens=False)["input_ids"]
    assert written(tokenizer, encode, ("<|im_start|>user",))[0] == "hello"
    assert written(tokenizer, encode, ("<|im_start|>assistant",))[0] == tokenizer.decode(
        encode, skip_special_tokens=True
    )
    writing = Writing(tokenizer, ("<|im_start|>user",))
    for token in encode[: encode.index(tokenizer.convert_tokens_to_ids("<|im_start|>")) + 1]:
        writing.add(token)
    writing.finish()
    assert (writing.text, writing.stopped) == ("hello", False)


def test_a_stop_text_of_a_special_token_stops_where_it_is_spelled(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    ids = tokenizer("hello <|im_end|> world", add_special_tokens=False, split_special_tokens=True)[
        "input_ids"
    ]
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in ids
    assert written(tokenizer, ids, ("<|im_end|>",))[0] == "hello"


def test_an_empty_stop_text_stops_nothing(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer("hello world", add_special_tokens=False)["input_ids"]
    assert written(tokenizer, ids, ("",))[0] == "hello world"


def test_an_answer_that_goes_on_keeps_the_space_in_front(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    ids = tokenizer("  in words. ", add_special_tokens=False)["input_ids"]
    writing = Writing(tokenizer, (), goes_on=True)
    pieces = [writing.add(token) for token in ids]
    pieces.append(writing.finish())
    assert "".join(pieces) == writing.text == tokenizer.decode(ids).rstrip()
    assert writing.text.startswith(" ")
