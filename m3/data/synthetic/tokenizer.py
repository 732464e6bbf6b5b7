"""Tokenizer of the tiny models: a small byte-level BPE learnt from the embedded suite's words.

In: nothing. Out: `PreTrainedTokenizerFast` with a ChatML template whose assistant tokens can be
told apart. Every word of the suite is one token, digits stand alone, and any other text falls back
to bytes.
"""

from collections.abc import Iterator
from typing import Final

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from m3.data.synthetic.suite import FAMILIES
from m3.processing.chat_template import IMAGE_TOKEN, chatml_template

PAD: Final = "<pad>"
TURN_START: Final = "<|im_start|>"
TURN_END: Final = "<|im_end|>"
MAX_TOKENS: Final = 1024  # an upper bound; merging stops on its own once every word is one token
MAX_LENGTH: Final = 4096
# Pieces that a token may not reach across: a word with the blank before it ("top-left" is one), a
# digit, a mark, other blanks.
PIECE_PATTERN: Final = r" ?\p{L}+(?:-\p{L}+)*|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def corpus() -> Iterator[str]:
    """Every question text and every answer of the suite, and the roles of the chat template."""
    for family in FAMILIES.values():
        for kind in family.kinds:
            yield from kind.texts()
            yield from kind.answers
    yield from ("system", "user", "assistant")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Train the tokenizer; the same words give the same tokens and ids every time."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECE_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_TOKENS,
        min_frequency=1,
        show_progress=False,
        special_tokens=[PAD, TURN_START, TURN_END, IMAGE_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    # Each distinct word once: merges then depend on the words alone, and rare ones become whole as
    # well.
    distinct_words = {
        piece for text in corpus() for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)
    }
    tokenizer.train_from_iterator(sorted(corpus()), trainer)
    fast_tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=TURN_END,
        additional_special_tokens=[TURN_START, IMAGE_TOKEN],
        model_max_length=MAX_LENGTH,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast_tokenizer.chat_template = chatml_template(IMAGE_TOKEN)
    whole_tokens = set(fast_tokenizer.get_vocab())
    assert distinct_words <= whole_tokens, (
        f"words in pieces: {sorted(distinct_words - whole_tokens)}"
    )
    return fast_tokenizer
