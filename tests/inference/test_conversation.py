"""Turns at any scale over pictures that are seen once; marks, schedules, limits; the one call."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_models import make_config
from torch import nn
from videos import write_video

import m3
from m3.inference import Conversation, Generation
from m3.inference.image_features import split_at_marks
from m3.model import M3ForConditionalGeneration
from m3.nesting import read_budget
from m3.processing import M3Processor
from m3.processing.video import Sampling, load_video

Loaded = tuple[M3ForConditionalGeneration, M3Processor]
FEW = Generation(max_new_tokens=6)


@contextmanager
def counting(tower: nn.Module) -> Iterator[list[tuple[int, int]]]:
    """How many pictures each call of the tower sees, and their side in pixels."""
    seen: list[tuple[int, int]] = []
    handle = tower.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(
            (len(kwargs["pixel_values"]), kwargs["pixel_values"].shape[-1])
        ),
        with_kwargs=True,
    )
    try:
        yield seen
    finally:
        handle.remove()


def direct(loaded: Loaded, text: str, images: list, scales: list[int | str]) -> str:
    """The same through the processor's call and transformers' `generate`, pixels and all."""
    model, processor = loaded
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
    )
    inputs = processor(text=prompt, images=images, matryoshka_vis_token_scale=scales)
    output = model.generate(
        **inputs, max_new_tokens=6, do_sample=False, eos_token_id=processor.tokenizer.eos_token_id
    )
    return processor.tokenizer.decode(
        output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    ).strip()


def test_a_picture_is_seen_once_whatever_is_asked_of_it(loaded: Loaded, files: Path) -> None:
    conversation = Conversation(*loaded, FEW)
    with counting(loaded[0].model.vision_tower) as seen:
        conversation.show_image(files / "red.png")
        conversation.outline("what colour", 9)
        assert seen == [], "nothing was asked yet"
        answers = [conversation.ask("what colour", scale) for scale in (144, 1, 9, None)]
        assert seen == [(1, 48)]
        conversation.show_video(files / "short.mp4", Sampling(num_frames=20))
        conversation.ask("and now", "36+1")
        assert seen == [(1, 48), (16, 48), (4, 48)]
        conversation.ask("and now", "144+9")
        assert len(seen) == 3
    assert [answer.visual_tokens for answer in answers] == [144, 1, 9, 144]
    assert answers[1].text_tokens > answers[0].text_tokens, (
        "the first turn and its answer stand in the second prompt"
    )


def test_a_picture_is_seen_once_at_each_resolution_that_is_asked_for(
    loaded: Loaded, files: Path
) -> None:
    conversation = Conversation(*loaded, FEW)
    with counting(loaded[0].model.vision_tower) as seen:
        conversation.show_image(files / "red.png")
        answers = [conversation.ask("what", scale) for scale in ("9@24", "1@24", "1@12", "36@24")]
        assert seen == [(1, 24), (1, 12)], "never at the full resolution"
        conversation.ask("what", "36@48")
        conversation.ask("what", 9)
        assert seen == [(1, 24), (1, 12), (1, 48)], "the largest resolution has two names"
        del seen[:]
        conversation.show_video(files / "short.mp4", Sampling(num_frames=3))
        conversation.ask("and now", "36+1@24")
        assert seen == [(1, 48), (2, 24)]
        conversation.ask("and now", "9@24")
        assert seen == [(1, 48), (2, 24), (1, 24)], "the first frame alone was not seen so"
    assert [answer.visual_tokens for answer in answers] == [9, 1, 1, 36]


@pytest.mark.parametrize("scale", [1, 9, 144, "1@12", "9@24", "36@24", "36@48"])
def test_the_answer_is_that_of_the_pixels(loaded: Loaded, files: Path, scale: int | str) -> None:
    pictures = [files / "red.png", files / "ramp.png"]
    conversation = Conversation(*loaded, FEW)
    for picture in pictures:
        conversation.show_image(picture)
    expected = direct(loaded, "<image>\n<image>\nwhat is it", pictures, [scale, scale])
    assert conversation.ask("what is it", scale).text == expected
    assert expected


@pytest.mark.parametrize(
    ("schedule", "scales"),
    [
        ("9x2+1", [9, 9, 9, 1]),
        ("36x2+4@24", [36, 36, 36, "4@24"]),
        ("1@12+9@24x1+144", ["1@12", "1@12", "9@24", 144]),
    ],
)
def test_images_and_videos_stand_where_the_question_says(
    loaded: Loaded, files: Path, schedule: str, scales: list[int | str]
) -> None:
    conversation = Conversation(*loaded, FEW)
    conversation.show_video(files / "short.mp4", Sampling(num_frames=3))
    conversation.show_image(files / "ramp.png")
    answer = conversation.ask("first <image> then <video> which is red", schedule)
    frames = load_video(files / "short.mp4", Sampling(num_frames=3)).frames
    text = "first <image> then <image><image><image> which is red"
    assert answer.text == direct(loaded, text, [files / "ramp.png", *frames], scales)
    assert answer.visual_tokens == sum(read_budget(scale).tokens for scale in scales)
    assert [seen.name for seen in conversation.pictures()] == [
        str(files / "ramp.png"),
        str(files / "short.mp4"),
    ]


def test_pieces_make_the_answer(loaded: Loaded, files: Path) -> None:
    conversation = Conversation(*loaded, Generation(max_new_tokens=24))
    conversation.show_image(files / "ramp.png")
    pieces: list[str] = []
    # its answer has blanks, and pieces end at blanks
    answer = conversation.ask("what colour", 4, pieces.append)
    assert "".join(pieces).strip() == answer.text
    assert len(pieces) > 1


def test_what_is_not_kept_leaves_no_trace(loaded: Loaded, files: Path) -> None:
    conversation = Conversation(*loaded, FEW)
    conversation.show_image(files / "red.png")
    first = conversation.ask("what colour", 9, keep=False)
    again = conversation.ask("what colour", 9)
    assert first == again
    conversation.clear()
    assert conversation.pictures() == []
    assert conversation.ask("what colour").visual_tokens == 0


def test_256_frames_at_one_token_each(loaded: Loaded, tmp_path: Path) -> None:
    video = write_video(tmp_path / "long.mp4", frames=256, fps=32)
    conversation = Conversation(*loaded, Generation(max_new_tokens=2))
    seen = conversation.show_video(video, Sampling(num_frames=256))
    assert len(seen.pictures) == 256
    answer = conversation.ask("what happens", 1)
    assert answer.visual_tokens == 256
    assert answer.text_tokens < 32, "frames stand side by side, with nothing between them"
    with pytest.raises(
        ValueError,
        match=r"has 2,... tokens, 2,304 of them for 256 pictures, and the model reads "
        r"at most 2,048",
    ):
        conversation.ask("what happens", 9)


def test_sampling_differs_from_greedy_and_stays_within_its_rules(
    loaded: Loaded, files: Path
) -> None:
    torch.manual_seed(0)
    texts = {
        m3.ask(
            loaded,
            "what is it",
            images=files / "red.png",
            generation=Generation(8, temperature=3.0, top_p=0.9),
        )
        for _ in range(3)
    }
    assert len(texts) > 1
    for wrong in ({"temperature": -1.0}, {"top_p": 0.0}, {"max_new_tokens": 0}):
        with pytest.raises(ValueError, match="expected max_new_tokens as a whole number from 1"):
            Generation(**wrong)


@pytest.mark.parametrize(
    ("question", "scale", "message"),
    [
        (
            "<image> and <image>",
            9,
            "has the marks <image>, <image>, but what was shown since the last one is <image>",
        ),
        ("<video>", 9, "has the marks <video>, but what was shown since the last one is <image>"),
        ("what", 100, "scale 100 cannot be reached exactly from a 12x12 grid"),
        ("what", "144:1", "the scale '144:1' cannot be read"),
        ("what", "144@24", "choose one of 1, 4, 9, 36"),
        ("what", "9@26", "a multiple of 4 pixels"),
        ("what", "9@96", "more than this model sees: at most 48 pixels"),
        ("what", [1, 1], "2 scales were given for 1 frames"),
    ],
)
def test_a_mistake_is_told_and_changes_nothing(
    loaded: Loaded, files: Path, question: str, scale: int | str | list[int], message: str
) -> None:
    conversation = Conversation(*loaded, FEW)
    conversation.show_image(files / "red.png")
    with pytest.raises(ValueError, match=re.escape(message)):
        conversation.ask(question, scale)
    assert conversation.ask("what", 9).visual_tokens == 9


def test_a_resolution_that_the_encoder_does_not_see_is_refused(loaded: Loaded, files: Path) -> None:
    processor = loaded[1]
    config = make_config(
        vision="internvl_vision",
        vocab_size=len(processor.tokenizer),
        image_token_id=processor.image_token_id,
    )
    conversation = Conversation(M3ForConditionalGeneration(config).eval(), processor, FEW)
    conversation.show_image(files / "red.png")
    with pytest.raises(
        ValueError, match="internvl_vision sees images of 48 pixels alone, not of 24"
    ):
        conversation.ask("what", "9@24")
    assert conversation.ask("what", 9).visual_tokens == 9


@pytest.mark.parametrize("scale", [9, "9@24"])
def test_one_call(checkpoint: Path, loaded: Loaded, files: Path, scale: int | str) -> None:
    images = [files / "red.png", Image.open(files / "ramp.png")]
    question, few = "what is it", {"generation": FEW, "matryoshka_vis_token_scale": scale}
    text = m3.ask(checkpoint, question, images=images, device="cpu", **few)
    assert text == m3.ask(loaded, question, images=images, **few)
    assert text == direct(loaded, "<image>\n<image>\n" + question, images, [scale, scale])
    shown = m3.ask(
        loaded, question, video=files / "short.mp4", sampling=Sampling(num_frames=2), **few
    )
    frames = list(load_video(files / "short.mp4", Sampling(num_frames=2)).frames)
    assert shown == direct(loaded, "<image><image>\n" + question, frames, [scale, scale])
    with pytest.raises(ValueError, match="for a model that is loaded: it stays where it is"):
        m3.ask(loaded, question, device="cpu")


def test_reading_order_keeps_marks_between_texts() -> None:
    assert list(split_at_marks("a<i>b<v><i>", ("<i>", "<v>"))) == [
        "a",
        "<i>",
        "b",
        "<v>",
        "",
        "<i>",
        "",
    ]
    assert list(split_at_marks("plain", ("<i>",))) == ["plain"]
