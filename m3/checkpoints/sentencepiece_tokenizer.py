"""Llama's tokenizer as older checkpoints ship it: a sentencepiece model (`tokenizer.model`) and no
`tokenizer.json`.

In: such a folder, as LLaVA-1.5 and M3 are published. Out: a fast tokenizer with the ids of the slow
one they were trained with (`LlamaTokenizer` of transformers 4), which stays so when it is saved and
loaded again.

The trap is the space that sentencepiece puts before a text (`▁`). The originals encode the text
before, between and behind images one by one (`tokenizer_image_token` in llava/mm_utils.py), so each
of these begins with that space. Behind a special token inside a text (`</s>`) there is none, unless
the tokenizer is a `legacy` one, which puts it behind every special token. A fast tokenizer knows
one rule for all special tokens: a legacy one has the space everywhere, another one nowhere but at
the start, and then the chat template writes the space (`begins_anew`,
m3/processing/chat_template.py:vicuna_template).
"""

import json
from pathlib import Path

from tokenizers import normalizers
from transformers import (
    AutoTokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.convert_slow_tokenizer import import_protobuf

from m3.optional import require

MODEL, FAST, SETTINGS = "tokenizer.model", "tokenizer.json", "tokenizer_config.json"


def is_sentencepiece(folder: Path) -> bool:
    """Tell whether the folder's tokenizer is a sentencepiece model alone."""
    return (folder / MODEL).is_file() and not (folder / FAST).is_file()


def load_sentencepiece(folder: Path) -> PreTrainedTokenizerBase:
    """The folder's tokenizer as a fast one.

    Raises:
        ModuleNotFoundError: sentencepiece is not installed. (Without it transformers would take the
            file for another format; so it would with a protobuf that sentencepiece was not made
            for, which is an error here too.)
    """
    require("sentencepiece")
    import_protobuf()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    settings = json.loads((folder / SETTINGS).read_text()) if (folder / SETTINGS).is_file() else {}
    if not isinstance(tokenizer, LlamaTokenizer):
        return tokenizer
    backend = tokenizer.backend_tokenizer
    # absent meant yes when these checkpoints were made; now it means no
    if settings.get("legacy") is not False:
        spaces = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        backend.normalizer = normalizers.Sequence(spaces)  # pyright: ignore[reportAttributeAccessIssue]
        backend.pre_tokenizer = None  # pyright: ignore[reportAttributeAccessIssue]
    # LlamaTokenizer would build the rules anew whenever it is loaded; this class keeps those of
    # tokenizer.json
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=tokenizer.chat_template,
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        clean_up_tokenization_spaces=False,
        **tokenizer.special_tokens_map,
    )


def begins_anew(tokenizer: PreTrainedTokenizerBase, image_token: str) -> bool:
    """Tell whether a text behind an image is encoded as at the start."""
    return tokenizer.tokenize(f"{image_token}A")[1:] == tokenizer.tokenize("A")
