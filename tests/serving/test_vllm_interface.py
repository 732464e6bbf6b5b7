"""What vLLM's Transformers backend asks of a processor and of a model, and what
docs/serving_at_scale.md says of ours.
"""

import pytest
import torch
from PIL import Image

from m3.model import M3ForConditionalGeneration
from m3.processing import M3Processor

Loaded = tuple[M3ForConditionalGeneration, M3Processor]
SCALES = [1, 36, 9, 144]


def test_each_image_s_replacement_is_given_at_mixed_scales(loaded: Loaded) -> None:
    processor = loaded[1]
    images = [Image.new("RGB", (30, 20), colour) for colour in ("red", "green", "blue", "white")]
    text = "a " + "<image> b ".join([""] * 5)
    given = processor(
        images=images,
        text=text,
        matryoshka_vis_token_scale=SCALES,
        return_text_replacement_offsets=True,
    )
    (offsets,) = given["text_replacement_offsets"]
    assert {one["type"] for one in offsets} == {"image"}
    ids = [
        processor.tokenizer.encode(one["replacement"], add_special_tokens=False) for one in offsets
    ]
    assert ids == [[processor.image_token_id] * scale for scale in SCALES]
    planned = processor._get_num_multimodal_tokens(
        [[20, 30]] * 4, matryoshka_vis_token_scale=SCALES
    )
    assert planned.num_image_tokens == SCALES


def test_features_are_those_before_nesting(loaded: Loaded) -> None:
    model, processor = loaded
    given = processor(
        images=Image.new("RGB", (30, 20)), text="<image>", matryoshka_vis_token_scale=9
    )
    with torch.no_grad():
        assert model.get_image_features(given["pixel_values"]).pooler_output.shape[:2] == (1, 144)
    with pytest.raises(TypeError, match="unexpected keyword argument 'image_scales'"):
        model.get_image_features(given["pixel_values"], image_scales=given["image_scales"])  # pyright: ignore[reportCallIssue]
