"""The format of transformers' `LlavaNextForConditionalGeneration` (`llava-hf/llava-v1.6-*`).

m3/checkpoints/formats/hub_llava.py with images of any resolution: the newline vector, the
pinpoints, and an image processor that cuts, in place of the one for a single tile that ours has.
"""

from pathlib import Path
from typing import Any

from transformers import (
    BaseImageProcessor,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
)
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)

from m3.checkpoints.base import refuse
from m3.checkpoints.formats.hub_llava import IMAGE_SETTINGS, KEYMAP, HubConfig, HubLlava
from m3.checkpoints.formats.llava_tiling import problems
from m3.checkpoints.keymap import Keymap, Row
from m3.checkpoints.processors import clip_image_processor, load_image_processor
from m3.model import M3Config
from m3.nesting import Tiling
from m3.nesting.tiling import AnyRes

ROUNDING = "seven_digits"
BICUBIC = 3


class LlavaNextHf(HubLlava):
    """The row of the table."""

    name = "llava-next-hf"
    config_class = LlavaNextConfig
    model_class = LlavaNextForConditionalGeneration
    processor_class = LlavaNextProcessor
    keymap = Keymap(
        (*KEYMAP.rows, Row("model.image_newline", "model.image_newline")), KEYMAP.dropped
    )

    def read_tiling(self, config: HubConfig) -> Tiling:
        assert isinstance(config, LlavaNextConfig)
        tower: Any = config.vision_config  # a configuration once read
        return AnyRes(
            tile_size=tower.image_size,
            grid_pinpoints=config.image_grid_pinpoints or [],
            unpad_rounding=ROUNDING,
        )

    def read_image_processor(self, folder: Path, tiling: Tiling) -> BaseImageProcessor:
        """The one of a tile; cutting is ours (m3/processing/tiles.py)."""
        settings = load_image_processor(folder).to_dict()
        pinpoints = [list(pinpoint) for pinpoint in settings["image_grid_pinpoints"]]
        refuse(
            "the image processor of this format is read without",
            {
                f"resample {settings['resample']} (3, bicubic, is)": settings["resample"]
                != BICUBIC,
                f"image_grid_pinpoints {pinpoints}, which are not those of the model": (
                    pinpoints != tiling.to_dict()["grid_pinpoints"]
                ),
            },
        )
        return clip_image_processor(
            {setting_name: settings[setting_name] for setting_name in IMAGE_SETTINGS}
        )

    def unfit(self, tiling: Tiling) -> dict[str, bool]:
        return {
            f"the tiling {tiling.kind} (anyres is)": tiling.kind != "anyres",
            **problems(tiling, ROUNDING),
        }

    def tile_settings(self, config: M3Config) -> dict[str, Any]:
        return {"image_grid_pinpoints": config.tiling.to_dict()["grid_pinpoints"]}

    def write_image_processor(
        self, image_processor: BaseImageProcessor, tiling: Tiling
    ) -> BaseImageProcessor:
        own_settings = image_processor.to_dict()
        settings: dict[str, Any] = {
            "do_center_crop": False,
            "crop_size": {"height": tiling.tile_size, "width": tiling.tile_size},
        }
        settings |= {
            setting_name: own_settings[setting_name]
            for setting_name in IMAGE_SETTINGS
            if setting_name in own_settings
        } | {"resample": BICUBIC}
        settings |= {"image_grid_pinpoints": tiling.to_dict()["grid_pinpoints"]}
        return LlavaNextImageProcessorPil(**settings)
