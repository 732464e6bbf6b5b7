"""The engine asks an Aria as the processor and `generate` would: padded tiles, split images,
fewer tokens of small tiles.
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_aria import SMALL, aria_config, save_aria

from m3.checkpoints.convert import convert
from m3.evaluation.answering.decoding import Decoding
from m3.evaluation.answering.engine import Engine, Picture
from m3.processing import M3Processor


@pytest.mark.parametrize("split", [False, True])
def test_answers_are_those_of_the_model(split: bool, tmp_path: Path) -> None:
    save_aria(tmp_path / "hub", aria_config(experts=8))
    convert(tmp_path / "hub", tmp_path / "native")
    processor = M3Processor.from_pretrained(tmp_path / "native")
    processor.image_processor.max_image_size, processor.image_processor.split_image = SMALL, split
    processor.save_pretrained(tmp_path / "native")
    engine = Engine.load(str(tmp_path / "native"))
    shown = [
        Image.fromarray(
            np.random.default_rng(n).integers(0, 256, (40, 60 + 40 * n, 3), dtype=np.uint8)
        )
        for n in (0, 1)
    ]
    pictures = [Picture.of(image) for image in shown]
    messages = [{"role": "user", "content": "<|img|>\nWhat colour is it?"}]
    questions = [
        engine.question(messages, [picture], 8, Decoding(max_new_tokens=4)) for picture in pictures
    ]
    replies = dict(pair for batch in engine.answer(questions, batch_size=2) for pair in batch)
    for number, image in enumerate(shown):
        inputs = processor(images=image, text=questions[number].text, matryoshka_vis_token_scale=8)
        ids = engine.model.generate(**inputs, max_new_tokens=4, do_sample=False)[
            0, inputs["input_ids"].shape[1] :
        ]
        assert replies[number].text == processor.tokenizer.decode(ids, skip_special_tokens=True)
        assert replies[number].visual_tokens == 8 * int(inputs["image_tiles"].sum())
        assert (int(inputs["image_tiles"]) > 1) == split
