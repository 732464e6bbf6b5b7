"""The processor of a converted checkpoint: its tokenizer with an image token, its image
processor, its chat template.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import (
    AddedToken,
    AutoImageProcessor,
    AutoTokenizer,
    BaseImageProcessor,
    CLIPImageProcessorPil,
    PreTrainedTokenizerBase,
)

from m3.auto import M3Config, M3Processor
from m3.checkpoints.sentencepiece_tokenizer import begins_anew, is_sentencepiece, load_sentencepiece
from m3.processing.chat_template import CONTROL_TOKENS, IMAGE_TOKEN, vicuna_template

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
_IMAGE_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def load_tokenizer(folder: Path, given: Path | None, vocabulary: int) -> PreTrainedTokenizerBase:
    """The tokenizer of `given`, or else of the checkpoint itself, as a fast one.

    Args:
        vocabulary: rows of the model's embedding; a tokenizer with more ids belongs to another
            model.
    """
    tokenizer_folder = given or folder
    if not any((tokenizer_folder / file_name).is_file() for file_name in _TOKENIZER_FILES):
        raise ValueError(
            f"{tokenizer_folder} has no tokenizer ({', '.join(_TOKENIZER_FILES)}); name its "
            "folder with --tokenizer"
        )
    tokenizer = (
        load_sentencepiece(tokenizer_folder)
        if is_sentencepiece(tokenizer_folder)
        else AutoTokenizer.from_pretrained(tokenizer_folder)
    )
    if not tokenizer.is_fast:
        raise ValueError(
            f"{tokenizer_folder}: {type(tokenizer).__name__} has no fast form; give one with "
            "--tokenizer"
        )
    ids = [i for token, i in tokenizer.get_vocab().items() if token != IMAGE_TOKEN]
    if max(ids) >= vocabulary:
        raise ValueError(
            f"{tokenizer_folder}: the tokenizer has ids up to {max(ids)}, but the model has "
            f"embeddings for {vocabulary} tokens. Give the tokenizer that the model was trained "
            "with (--tokenizer)"
        )
    return tokenizer


def add_image_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Makes sure of `<image>` as one token; returns its id.

    The placeholder needs no embedding, since visual tokens take its place: its id may lie beyond
    the model's vocabulary (`M3Config.image_token_id`), so that the weights stay as they are.
    """
    add_tokens(tokenizer, (IMAGE_TOKEN,))
    return tokenizer.get_vocab()[IMAGE_TOKEN]


def add_tokens(tokenizer: PreTrainedTokenizerBase, names: Sequence[str]) -> list[int]:
    """Makes sure of special tokens; returns the ids of those that were not there."""
    new_names = [token_name for token_name in names if token_name not in tokenizer.get_vocab()]
    tokenizer.add_tokens(
        [AddedToken(token_name, special=True, normalized=False) for token_name in new_names],
        special_tokens=True,
    )
    return [tokenizer.get_vocab()[token_name] for token_name in new_names]


def own_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A text model's own chat template, if it keeps images and marks answers for training ({%
    generation %}).
    """
    saved_template = tokenizer.chat_template
    if not isinstance(saved_template, str) or "generation" not in saved_template:
        return None
    return next(
        (
            tried_template
            for tried_template in (saved_template, _AS_PARTS + saved_template)
            if carries_images(tokenizer, tried_template, IMAGE_TOKEN)
        ),
        None,
    )


def load_image_processor(folder: Path) -> BaseImageProcessor:
    """The image processor that a folder holds, PIL backend."""
    if not any((folder / file_name).is_file() for file_name in _IMAGE_PROCESSOR_FILES):
        raise ValueError(f"{folder} has no image processor ({' or '.join(_IMAGE_PROCESSOR_FILES)})")
    return AutoImageProcessor.from_pretrained(folder, backend="pil")


def clip_image_processor(settings: Mapping[str, Any]) -> BaseImageProcessor:
    """A CLIP image processor from plain settings (m3/checkpoints/formats/clip.py)."""
    return CLIPImageProcessorPil(
        **{
            setting_name: setting_value
            for setting_name, setting_value in settings.items()
            if setting_name != "image_processor_type"
        }
    )


def make_processor(
    config: M3Config,
    image_processor: BaseImageProcessor,
    tokenizer: PreTrainedTokenizerBase,
    chat_template: str | None,
    image_token: str = IMAGE_TOKEN,
) -> M3Processor:
    """The processor of a model; prompts are padded on the left."""
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    nesting = {"kind": config.nesting.kind, "trained_scales": list(config.nesting.trained_scales)}
    return M3Processor(
        image_processor,
        tokenizer,
        grid=config.grid,
        nesting=nesting,
        tiling=config.tiling.to_dict(),
        image_token=image_token,
        chat_template=chat_template,
    )


def token_of(tokenizer: PreTrainedTokenizerBase, image_token_id: int) -> str:
    """The text of the placeholder; a `ValueError` when the tokenizer has no such id."""
    tokens_by_id = {i: token for token, i in tokenizer.get_vocab().items()}
    if image_token_id not in tokens_by_id:
        raise ValueError(
            f"the model's image token has the id {image_token_id}, but the tokenizer's ids end at "
            f"{max(tokens_by_id)}. Give "
            "the tokenizer that belongs to the model (--tokenizer)"
        )
    return tokens_by_id[image_token_id]


def choose_template(
    tokenizer: PreTrainedTokenizerBase, folder: Path, config: M3Config, given: str | None
) -> str | None:
    """The chat format of a checkpoint: the user's, its own, ChatML (None) where the tokenizer has
    it, LLaVA-1.5's.

    Raises:
        ValueError: none of these can be meant.
    """
    if given is not None:
        return given
    old_file = folder / "chat_template.json"
    saved_template = (
        json.loads(old_file.read_text())["chat_template"]
        if old_file.is_file()
        else tokenizer.chat_template
    )
    image_token = token_of(tokenizer, config.image_token_id)
    if isinstance(saved_template, str):
        for template in (saved_template, _AS_PARTS + saved_template):
            if carries_images(tokenizer, template, image_token):
                return template
    if all(token in tokenizer.get_vocab() for token in CONTROL_TOKENS):
        return None
    if saved_template is None and config.text_config.model_type == "llama":
        return vicuna(tokenizer, image_token)
    raise ValueError(
        f"{folder} has no chat template that keeps the images of a message, and its tokenizer has "
        "no ChatML tokens. "
        "Give one with --chat-template FILE"
    )


def vicuna(tokenizer: PreTrainedTokenizerBase, image_token: str = IMAGE_TOKEN) -> str:
    """Vicuna's chat template, with the space behind images where the tokenizer does not put it
    there itself.
    """
    return vicuna_template(image_token, "" if begins_anew(tokenizer, image_token) else " ")


_AS_PARTS = (
    "{%- set ns = namespace(all=[]) -%}{%- for message in messages -%}{%- set ns.all = ns.all + "
    "[dict(message, "
    "content=[{'type': 'text', 'text': message.content}]) if message.content is string else "
    "message] -%}{%- endfor -%}"
    "{%- set messages = ns.all -%}"
)
"""Put before a template that reads lists of parts only (as those of transformers do): a string
becomes one part.
"""


def carries_images(tokenizer: PreTrainedTokenizerBase, template: str, image_token: str) -> bool:
    """Tell whether a chat template keeps text and image of a message, given as one string and as a
    list of parts.
    """
    message_parts = [{"type": "image"}, {"type": "text", "text": "probe"}]
    for probe_content in (f"{image_token}\nprobe", message_parts):
        probe_messages = [{"role": "user", "content": probe_content}]
        try:
            probe_text = tokenizer.apply_chat_template(
                probe_messages, chat_template=template, tokenize=False
            )
        except (TemplateError, TypeError):
            return False
        assert isinstance(probe_text, str)  # since nothing is tokenised
        if probe_text.count(image_token) != 1 or "probe" not in probe_text:
            return False
    return True
