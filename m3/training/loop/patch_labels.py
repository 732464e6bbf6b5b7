"""The tower stage: teaches a vision encoder what lies on each patch, and where it belongs.

A tiny encoder has no web-scale pre-training behind it. Dense labels per patch, which the embedded
suite knows exactly, stand in for what CLIP or SigLIP bring along; the encoder that comes out is an
ordinary transformers vision model.

in:  `pixel_values [i, 3, H, W]`, `patch_class [i, n]` and `patch_slot [i, n]` (see
    m3/data/synthetic/vocabulary.py);
out: loss, and the accuracy on patches that are not plain ground.
"""

import io
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModel, BaseImageProcessor, PreTrainedConfig
from transformers.utils.generic import ModelOutput

GROUND_WEIGHT = 0.1  # most patches are plain ground; unweighed they would drown the rest


@dataclass
class PatchLabellerOutput(ModelOutput):
    """loss: scalar; the accuracies: scalars over patches whose label is not 0."""

    loss: Tensor | None = None
    class_accuracy: Tensor | None = None
    slot_accuracy: Tensor | None = None


class PatchLabeller(nn.Module):
    """A vision encoder with two linear heads on every patch: the class of what lies there, and
    its slot.
    """

    def __init__(self, config: PreTrainedConfig, classes: int, slots: int) -> None:
        super().__init__()
        self.encoder = AutoModel.from_config(config)
        self.class_head = nn.Linear(config.hidden_size, classes)
        self.slot_head = nn.Linear(config.hidden_size, slots)

    def forward(
        self,
        pixel_values: Float[Tensor, "i c h w"],
        patch_class: Int[Tensor, "i n"],
        patch_slot: Int[Tensor, "i n"],
    ) -> PatchLabellerOutput:
        features = self.encoder(pixel_values).last_hidden_state
        class_loss, class_accuracy = _weighted(self.class_head(features), patch_class)
        slot_loss, slot_accuracy = _weighted(self.slot_head(features), patch_slot)
        return PatchLabellerOutput(class_loss + slot_loss, class_accuracy, slot_accuracy)


def _weighted(logits: Float[Tensor, "i n c"], labels: Int[Tensor, "i n"]) -> tuple[Tensor, Tensor]:
    weight = torch.ones(logits.shape[-1], device=logits.device)
    weight[0] = GROUND_WEIGHT
    loss = cross_entropy(logits.flatten(0, 1), labels.flatten(), weight=weight)
    is_labelled = labels != 0
    is_right = (logits.detach().argmax(-1) == labels) & is_labelled
    return loss, is_right.sum() / is_labelled.sum().clamp(min=1)


class PatchLabelCollator:
    """Rows of the suite's training parquet -> a batch for `PatchLabeller`."""

    def __init__(self, image_processor: BaseImageProcessor) -> None:
        self.image_processor = image_processor

    def __call__(self, rows: list[dict]) -> dict[str, Tensor]:
        images = [
            Image.open(io.BytesIO(suite_row["image"]["bytes"])).convert("RGB") for suite_row in rows
        ]
        labels = {
            label_name: torch.from_numpy(
                np.stack(
                    [np.frombuffer(suite_row[label_name], np.uint8) for suite_row in rows]
                ).astype(np.int64)
            )
            for label_name in ("patch_class", "patch_slot")
        }
        return {
            "pixel_values": self.image_processor(images, return_tensors="pt")["pixel_values"],
            **labels,
        }
