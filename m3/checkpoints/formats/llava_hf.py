"""The format of transformers' `LlavaForConditionalGeneration` (`llava-hf/*`): hub_llava.py with
one tile per image.
"""

import logging
from pathlib import Path
from typing import Any

from transformers import (
    BaseImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from m3.checkpoints.formats.hub_llava import IMAGE_SETTINGS, HubConfig, HubLlava
from m3.checkpoints.processors import load_image_processor
from m3.model import M3Config
from m3.nesting import SingleTile, Tiling

logger = logging.getLogger(__name__)


class LlavaHf(HubLlava):
    """The row of the table."""

    name = "llava-hf"
    config_class = LlavaConfig
    model_class = LlavaForConditionalGeneration
    processor_class = LlavaProcessor

    def read_tiling(self, config: HubConfig) -> Tiling:
        return SingleTile()

    def read_image_processor(self, folder: Path, tiling: Tiling) -> BaseImageProcessor:
        image_processor = load_image_processor(folder)
        if image_processor.to_dict().get("do_center_crop"):
            logger.warning(
                "%s: its image processor crops the middle of an image; here the whole image is "
                "padded to a square, as LLaVA was trained. Images that are no squares give other "
                "pixels, and so other answers, than in transformers",
                folder,
            )
        return image_processor

    def unfit(self, tiling: Tiling) -> dict[str, bool]:
        return {f"the tiling {tiling.kind} (one tile per image is)": tiling.kind != "single"}

    def tile_settings(self, config: M3Config) -> dict[str, Any]:
        assert isinstance(config.grid, tuple)  # of one tile
        return {"image_seq_length": config.grid[0] * config.grid[1]}

    def write_image_processor(
        self, image_processor: BaseImageProcessor, tiling: Tiling
    ) -> BaseImageProcessor:
        settings = image_processor.to_dict()
        return LlavaImageProcessorPil(
            do_pad=True,
            **{
                setting_name: settings[setting_name]
                for setting_name in IMAGE_SETTINGS
                if setting_name in settings
            },
        )
