"""Using models whose images are cut into tiles: any resolution as in M3-NeXT, and Aria."""

from pathlib import Path

import pytest
import torch
from checkpoint_tools import make_tokenizer
from tiny_aria import aria_config, save_aria

import m3
from m3.checkpoints.base import Options
from m3.checkpoints.convert import convert
from m3.cli import main
from m3.inference import Conversation, Generation, load
from m3.model import M3ForConditionalGeneration
from m3.processing import M3Processor
from m3.processing.aria_tiles import AriaTileProcessor

ANYRES = Path(__file__).parents[1] / "fixtures" / "llava_m3" / "anyres"
PICTURE = ANYRES / "image.png"  # 640 x 420: the whole and 2 x 2 tiles
QUESTION, NEW = "w4 what is it", 6
SCALES = {"anyres": (9, 36, "9@336", "9@168"), "aria": (8, 256, "8@28")}
Used = tuple[Path, tuple[M3ForConditionalGeneration, M3Processor], tuple[int | str, ...]]


@pytest.fixture(scope="module", params=SCALES)
def used(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Used:
    """The folder, converted and loaded, and some scales."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "anyres":
        make_tokenizer(96).save_pretrained(folder / "tokenizer")
        convert(ANYRES, folder / "native", options=Options(tokenizer=folder / "tokenizer"))
    else:
        save_aria(folder / "hub", aria_config(experts=8))
        convert(folder / "hub", folder / "native")
    return folder / "native", load(folder / "native", device="cpu"), SCALES[request.param]


def prepared(used: Used, scale: int | str) -> dict[str, torch.Tensor]:
    """The processor's own call, pixels and all."""
    processor = used[1][1]
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}
    text = processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
    return processor(text=text, images=PICTURE, matryoshka_vis_token_scale=scale)


@pytest.mark.filterwarnings("ignore:.*trained")
def test_the_streamed_answer_is_that_of_processor_and_generate(used: Used) -> None:
    _, (model, processor), scales = used
    conversation = Conversation(model, processor, Generation(NEW))
    conversation.show_image(PICTURE)
    for scale in scales:
        inputs = prepared(used, scale)
        output = model.generate(
            **inputs,
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=processor.tokenizer.eos_token_id,
        )
        text = processor.tokenizer.decode(
            output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        ).strip()
        pieces: list[str] = []
        answer = conversation.ask(QUESTION, scale, pieces.append, keep=False)
        assert answer.text == "".join(pieces).strip() == text != ""
        asked = m3.ask(
            used[1],
            QUESTION,
            images=PICTURE,
            matryoshka_vis_token_scale=scale,
            generation=Generation(NEW),
        )
        assert asked == text


def test_without_a_scale_each_picture_is_read_at_the_largest_it_reaches(used: Used) -> None:
    folder, (model, _), _ = used
    processor = M3Processor.from_pretrained(folder)
    if isinstance(processor.image_processor, AriaTileProcessor):
        # its small tiles do not reach the largest trained scale
        processor.image_processor.max_image_size = 28
    conversation = Conversation(model, processor, Generation(NEW))
    conversation.show_image(PICTURE)
    tokens = processor.count_tokens([(420, 640)])
    assert conversation.outline(QUESTION, None).visual_tokens == tokens[0]


@pytest.mark.filterwarnings("ignore:.*trained")
def test_explain_shows_what_the_model_reads(used: Used, capsys: pytest.CaptureFixture[str]) -> None:
    folder, (model, _), scales = used
    arguments = [
        "--image-file",
        str(PICTURE),
        "--query",
        QUESTION,
        "--explain",
        "--max-new-tokens",
        "1",
    ]
    listed = ",".join(map(str, scales))
    capsys.readouterr()
    shown = [
        "chat",
        "--model-path",
        str(folder),
        "--device",
        "cpu",
        "--matryoshka_vis_token_scale",
        listed,
    ]
    assert main([*shown, *arguments]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for scale in scales:
        ids = prepared(used, scale)["input_ids"]
        visual = int((ids == model.config.image_token_id).sum())
        assert next(line for line in lines if line[:1] == [str(scale)])[1:3] == [
            str(visual),
            str(ids.numel() - visual),
        ]
