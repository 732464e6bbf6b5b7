"""Answers of the server for models whose images are tiles, and for decoders whose rows cannot
share a batch.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from checkpoint_tools import make_tokenizer
from serving_files import png
from tiny_aria import aria_config, save_aria
from tiny_models import make_config

from m3.checkpoints.base import Options
from m3.checkpoints.convert import convert
from m3.inference import Conversation, Generation, load
from m3.model import M3ForConditionalGeneration
from m3.processing import M3Processor
from m3.serving.engine.engine import Engine
from m3.serving.engine.requests import Refused, Request, Turn, Visual
from m3.serving.settings import Settings

Loaded = tuple[M3ForConditionalGeneration, M3Processor]
ANYRES = Path(__file__).parents[1] / "fixtures" / "llava_m3" / "anyres"
WIDE, NEW = (ANYRES / "image.png").read_bytes(), 6
SCALES = {"anyres": (9, 36, "9@336"), "aria": (8, 16, "8@28")}


@pytest.fixture(params=SCALES)
def tiled(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Loaded, tuple[int | str, ...]]:
    if request.param == "anyres":
        make_tokenizer(96).save_pretrained(tmp_path / "tokenizer")
        convert(ANYRES, tmp_path / "native", options=Options(tokenizer=tmp_path / "tokenizer"))
    else:
        save_aria(tmp_path / "hub", aria_config(experts=8))
        convert(tmp_path / "hub", tmp_path / "native")
    return load(tmp_path / "native", device="cpu"), SCALES[request.param]


def check(loaded: Loaded, requests: list[Request]) -> Engine:
    """All at once, against each alone."""
    engine = Engine(*loaded, Settings())
    with ThreadPoolExecutor(len(requests)) as threads:
        answers = list(threads.map(engine.answer, requests))
    engine.close()
    for request, answer in zip(requests, answers, strict=True):
        conversation = Conversation(*loaded, request.generation)
        *visuals, question = request.turns[0].parts
        for visual in visuals:
            conversation.show_image(visual.content)
        expected = conversation.ask(question, request.scale)
        assert answer.text == expected.text
        assert answer.usage.visual_tokens == expected.visual_tokens
        assert answer.usage.prompt_tokens == expected.visual_tokens + expected.text_tokens
    return engine


@pytest.mark.filterwarnings("ignore:.*trained")
def test_tiles_of_several_images_and_scales_share_a_batch(
    tiled: tuple[Loaded, tuple[int | str, ...]],
) -> None:
    loaded, scales = tiled
    pictures = [Visual("image", WIDE), Visual("image", png(size=(40, 200)))]
    shown = [pictures[:1], pictures[1:], pictures, []]
    check(
        loaded,
        [
            Request((Turn("user", (*visuals, "w4 what is it")),), scale, Generation(NEW))
            for visuals in shown
            for scale in scales
        ],
    )


def test_an_encoder_of_one_resolution_refuses_others_and_goes_on(loaded: Loaded) -> None:
    processor = loaded[1]
    config = make_config(
        vision="internvl_vision",
        vocab_size=len(processor.tokenizer),
        image_token_id=processor.image_token_id,
    )
    engine = Engine(M3ForConditionalGeneration(config).eval(), processor, Settings())
    turn = Turn("user", (Visual("image", png()), "What is it?"))
    with pytest.raises(Refused, match="sees images of 48 pixels alone, not of 24") as caught:
        engine.answer(Request((turn,), "9@24", Generation(2)))
    assert caught.value.status == 400
    assert engine.answer(Request((turn,), 9, Generation(2))).usage.visual_tokens == 9
    engine.close()


def test_a_decoder_that_forgets_answers_one_at_a_time(loaded: Loaded) -> None:
    _, processor = loaded
    config = make_config(
        decoder="qwen3",
        vocab_size=len(processor.tokenizer),
        image_token_id=processor.image_token_id,
    )
    config.text_config.sliding_window = 8
    config.text_config.layer_types = ["sliding_attention"] * config.text_config.num_hidden_layers
    model = M3ForConditionalGeneration(config).eval()
    image = Visual("image", png())
    requests = [
        Request((Turn("user", (image, "What is it?")),), scale, Generation(8))
        for scale in (1, 9, 36)
    ]
    engine = check((model, processor), requests)
    steps = engine.metrics.registry.get_sample_value("m3_decode_steps_total")
    written = engine.metrics.registry.get_sample_value("m3_new_tokens_total")
    # the first token of each comes of its prompt; no step served two
    assert steps == written - len(requests)
