"""M3's own format: what `save_pretrained` of model and processor leaves, with the names of
modules or of the hub.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m3.checkpoints.base import (
    Foreign,
    Format,
    Native,
    Options,
    Part,
    empty_model,
    generation_config,
)
from m3.checkpoints.conversion import HubLayout, ModuleLayout
from m3.checkpoints.keymap import Keymap, Row
from m3.model import M3Config
from m3.processing import M3Processor

KEYMAP = Keymap((Row("*", "*"),))


class M3Native(Format):
    """The row of the table.

    Reading understands `save_original_format=True` as well; writing keeps module names.
    """

    def recognises(self, config: Mapping[str, Any]) -> bool:
        return config.get("model_type") == M3Config.model_type

    def read(self, folder: Path, options: Options) -> Native:
        if options != Options(allow_pickle=options.allow_pickle):
            raise ValueError(
                f"{folder} is a native checkpoint and has its vision tower, tokenizer "
                "and chat template"
            )
        config = M3Config.from_pretrained(folder)
        weights_part = Part(folder, HubLayout(empty_model(config)), KEYMAP)
        processor = M3Processor.from_pretrained(folder)
        return Native(
            config, processor, (weights_part,), generation_config(config.text_config, folder)
        )

    def write(self, native: Native) -> Foreign:
        def save(folder: Path) -> None:
            native.config.architectures = ["M3ForConditionalGeneration"]
            native.config.save_pretrained(folder)
            native.processor.save_pretrained(folder)
            native.generation.save_pretrained(folder)

        return Foreign(ModuleLayout(), KEYMAP, save)
