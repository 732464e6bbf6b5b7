"""The interface of a format: one class per foreign format, one row each in
`m3/checkpoints/formats/__init__.py:FORMATS`.

Reading gives `Native`: the checkpoint in our terms, its configuration, processor and where its
weights lie. Writing takes the same and says what the foreign folder holds. Weights themselves are
no business of a format: it names a layout (m3/checkpoints/conversion.py) and a key map
(m3/checkpoints/keymap.py), and streaming does the rest.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig

from m3.auto import M3Config, M3ForConditionalGeneration, M3Processor
from m3.checkpoints.conversion import Layout
from m3.checkpoints.keymap import Keymap
from m3.config import describe

Edits = Mapping[str, Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class Options:
    """Files that a checkpoint may lack and the user brings: folders of a vision tower and a
    tokenizer, a chat template. `allow_pickle`: of pickled weights too.
    """

    vision_tower: Path | None = None
    tokenizer: Path | None = None
    chat_template: str | None = None
    allow_pickle: bool = False


@dataclass(frozen=True)
class Part:
    """A folder with some of the weights, and the table that maps their names to ours."""

    folder: Path
    layout: Layout
    keymap: Keymap
    edit: Edits = field(default_factory=dict)


@dataclass(frozen=True)
class Native:
    """A checkpoint in our terms."""

    config: M3Config
    processor: M3Processor
    parts: tuple[Part, ...]
    generation: GenerationConfig
    new: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors of ours that no part holds."""


@dataclass(frozen=True)
class Foreign:
    """The content of a foreign folder to be written: `save(folder)` writes all but the weights."""

    layout: Layout
    keymap: Keymap
    save: Callable[[Path], None]
    edit: Edits = field(default_factory=dict)


class Format(ABC):
    """A foreign format. Both ways raise a `ValueError` for what the other side cannot hold."""

    @abstractmethod
    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Tell whether `config.json` is of this format."""

    @abstractmethod
    def read(self, folder: Path, options: Options) -> Native:
        """Foreign to native."""

    @abstractmethod
    def write(self, native: Native) -> Foreign:
        """Native to foreign."""


def refuse(sentence: str, problems: Mapping[str, bool]) -> None:
    """A `ValueError` that opens with `sentence` and lists the problems that are true."""
    real_problems = [problem for problem, is_so in problems.items() if is_so]
    if real_problems:
        raise ValueError(f"{sentence} {', nor '.join(real_problems)}")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file; a `ValueError` when it is absent or damaged."""
    if not path.is_file():
        raise ValueError(f"{path.parent} has no {path.name}, so this is no checkpoint folder")
    try:
        json_content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(json_content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {describe(json_content)}")
    return json_content


def generation_config(text_config: PreTrainedConfig, folder: Path) -> GenerationConfig:
    """The ids that begin, end and pad a text, from the checkpoint's own file or its decoder;
    sampling is the caller's.
    """
    generation_file = folder / "generation_config.json"
    given_settings = read_json(generation_file) if generation_file.is_file() else {}
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    return GenerationConfig(
        **{
            setting_name: given_settings.get(setting_name, text_config.to_dict().get(setting_name))
            for setting_name in ids
        }
    )


def empty_model(config: M3Config) -> M3ForConditionalGeneration:
    """Our model without weights, on the meta device."""
    with torch.device("meta"):
        return M3ForConditionalGeneration(config)


def expected_tensors(config: M3Config) -> dict[str, Tensor]:
    """Tensors of a native checkpoint, on the meta device; tied tensors once."""
    model = empty_model(config)
    tied = set(model.all_tied_weights_keys)
    return {
        tensor_name: tensor
        for tensor_name, tensor in model.state_dict().items()
        if tensor_name not in tied
    }
