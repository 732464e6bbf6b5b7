"""Every `<image>` becomes exactly as many placeholders as the model will have features for that
image at its scale.
"""

import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jinja2 import TemplateError
from pictures import picture
from PIL import Image
from tiny_models import spans

from m3.nesting import NESTINGS, get_nesting
from m3.processing import M3Processor, expand_image_tokens

MakeProcessor = Callable[..., M3Processor]
GRIDS = [(12, 12), (4, 6), (24, 24)]


# ---------------------------------------------------------------------- placeholders == features
@pytest.mark.parametrize("kind", NESTINGS)
@pytest.mark.parametrize("grid", GRIDS)
def test_placeholders_equal_features_at_every_scale(
    kind: str, grid: tuple[int, int], make_processor: MakeProcessor
) -> None:
    reachable = get_nesting(kind).reachable(grid)
    chosen = (
        reachable if len(reachable) < 40 else (*reachable[:8], *reachable[8::29], reachable[-1])
    )
    processor = make_processor(
        grid=grid, nesting={"kind": kind, "trained_scales": [1, reachable[-1]]}
    )
    for scale in chosen:
        out = processor(images=picture(), text="<image>\nwhat?", matryoshka_vis_token_scale=scale)
        assert spans(out["input_ids"][0].tolist(), processor.image_token_id) == [scale]
        assert out["image_scales"].tolist() == [scale]
    assert len(chosen) >= 3


@pytest.mark.parametrize("kind", NESTINGS)
def test_mixed_scales_several_images_one_batch(kind: str, make_processor: MakeProcessor) -> None:
    processor = make_processor(nesting={"kind": kind, "trained_scales": [1, 4, 9, 36, 144]})
    scales = [144, 1, 9, 36]
    out = processor(
        images=[[picture("red")], [picture("lime"), picture("blue")], [], [picture("white")]],
        text=["<image>a", "<image> and <image>", "none", "b<image>"],
        matryoshka_vis_token_scale=scales,
    )
    found = [
        span for row in out["input_ids"].tolist() for span in spans(row, processor.image_token_id)
    ]
    assert found == scales == out["image_scales"].tolist()
    assert out["image_scales"].dtype == torch.int64
    brightest = out["pixel_values"].mean(dim=(2, 3))
    assert (brightest > 0.9).tolist() == [
        [True, False, False],
        [False, True, False],
        [False, False, True],
        [True] * 3,
    ]


def test_none_is_the_largest_trained_scale(make_processor: MakeProcessor) -> None:
    processor = make_processor(nesting={"kind": "grid_pool", "trained_scales": [36, 1, 4]})
    assert processor(images=picture(), text="<image>")["image_scales"].tolist() == [36]


def test_each_row_equals_its_own_call(processor: M3Processor) -> None:
    """A batch, padded on the left, holds what separate calls give."""
    texts = ["<image>\na long question about what there is", "<image>b", "words only"]
    images, scales = [[picture("red")], [picture("blue")], []], [9, 4]
    batch = processor(images=images, text=texts, matryoshka_vis_token_scale=scales)
    assert batch["attention_mask"][:, -1].tolist() == [1, 1, 1]
    for number, text in enumerate(texts):
        alone = processor(
            images=images[number],
            text=text,
            matryoshka_vis_token_scale=scales[number : number + 1] or None,
        )
        kept = batch["attention_mask"][number].bool()
        assert batch["input_ids"][number][kept].tolist() == alone["input_ids"][0].tolist()
        assert (batch["input_ids"][number][~kept] == processor.tokenizer.pad_token_id).all()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_side(side: str, processor: M3Processor) -> None:
    mask = processor(text=["a", "a a a a a"], padding_side=side)["attention_mask"][0].tolist()
    assert mask == sorted(mask, reverse=side == "right")
    assert 0 < sum(mask) < len(mask)


def test_images_come_in_three_forms(processor: M3Processor, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    picture("blue").save(path)
    one = processor(images=str(path), text="<image>")
    flat = processor(images=[path, path.read_bytes()], text=["<image>", "<image>"])
    nested = processor(images=[[path], [picture("blue")]], text=["<image>", "<image>"])
    for other in (flat, nested):
        assert torch.equal(other["pixel_values"], one["pixel_values"].expand(2, -1, -1, -1))
    alone = processor(images=[path, path])
    assert sorted(alone) == ["image_scales", "pixel_values"]


def test_lists_instead_of_tensors(processor: M3Processor) -> None:
    out = processor(
        images=picture(), text=["<image>a"], matryoshka_vis_token_scale=4, return_tensors=None
    )
    assert out["image_scales"] == [4]
    assert isinstance(out["input_ids"][0], list)


def test_text_only_with_a_scale(processor: M3Processor) -> None:
    out = processor(text="no image here", matryoshka_vis_token_scale=9)
    assert sorted(out) == ["attention_mask", "input_ids"]
    assert processor(images=[], text="no image")["input_ids"].ndim == 2


def test_no_special_token_is_added(processor: M3Processor) -> None:
    assert processor.tokenizer.decode(processor(text="abc")["input_ids"][0]) == "abc"


@pytest.mark.parametrize("counts", [[], [1], [3, 1], [1, 5, 2]])
def test_expand_image_tokens(counts: list[int]) -> None:
    ids = [7]
    expected = [7]
    for number, count in enumerate(counts):
        ids += [99, number]
        expected += [99] * count + [number]
    assert expand_image_tokens(ids, 99, counts) == expected


def test_expanding_ids_equals_expanding_text(processor: M3Processor) -> None:
    text = "look: <image>\nand <image> then"
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    out = processor(images=[picture(), picture()], text=text, matryoshka_vis_token_scale=[9, 36])
    assert (
        expand_image_tokens(
            ids, processor.image_token_id, processor.count_tokens([(8, 8)] * 2, [9, 36])
        )
        == out["input_ids"][0].tolist()
    )


def test_expand_refuses_another_number_of_images() -> None:
    with pytest.raises(
        ValueError, match="the ids hold 1 image tokens, but counts for 2 images were given"
    ):
        expand_image_tokens([1, 99], 99, [4, 4])


# ---------------------------------------------------------------------- mistakes
def test_marks_and_images_must_agree(processor: M3Processor) -> None:
    with pytest.raises(
        ValueError,
        match=r"text holds 2 <image> marks but 1 images were passed\. Write one "
        r"<image> where",
    ):
        processor(images=picture(), text="<image><image>")
    with pytest.raises(ValueError, match="text holds 1 <image> marks but 0 images were passed"):
        processor(text="<image>")
    with pytest.raises(ValueError, match="text holds 0 <image> marks but 1 images were passed"):
        processor(images=picture(), text="nothing")
    with pytest.raises(
        ValueError,
        match=r"2 <image> marks but 2 images were passed \(per prompt: \[2, 0\] marks, "
        r"\[1, 1\] im",
    ):
        processor(images=[[picture()], [picture()]], text=["<image><image>", "a"])
    with pytest.raises(
        ValueError, match="images holds lists for 1 prompts, but text holds 2 prompts"
    ):
        processor(images=[[picture()]], text=["<image>", "a"])
    with pytest.raises(ValueError, match="neither text nor images"):
        processor()
    with pytest.raises(ValueError, match=r"a non-empty list of strings, got \[\]"):
        processor(text=[])


def test_scales_must_fit(processor: M3Processor) -> None:
    with pytest.raises(
        ValueError,
        match=r"has 3 entries for 1 images\. Give one for all images, "
        r"or one per image",
    ):
        processor(images=picture(), text="<image>", matryoshka_vis_token_scale=[1, 4, 9])
    with pytest.raises(
        ValueError,
        match="scale 100 cannot be reached exactly from a 12x12 grid; choose one of 1, "
        "4, 9, 16, 36",
    ):
        processor(images=picture(), text="<image>", matryoshka_vis_token_scale=100)
    with pytest.raises(ValueError, match="scale 0 cannot be reached"):
        processor(images=picture(), text="<image>", matryoshka_vis_token_scale=0)


@pytest.mark.parametrize(
    "given",
    [np.int64(9), torch.tensor(9), [9], (9,), np.array([9]), torch.tensor([9]), [np.int32(9)]],
)
def test_scales_of_other_libraries_are_numbers_too(given: Any, processor: M3Processor) -> None:
    for call in (
        {"matryoshka_vis_token_scale": given},
        {"images_kwargs": {"matryoshka_vis_token_scale": given}},
    ):
        out = processor(images=picture(), text="<image>", **call)
        assert out["image_scales"].tolist() == [9]


@pytest.mark.parametrize("given", [True, 9.0, [True], [[9]], np.array([9.0])])
def test_what_is_no_scale_is_refused(given: Any, processor: M3Processor) -> None:
    message = "matryoshka_vis_token_scale must be a whole number, or a list of one per image; got"
    with pytest.raises(ValueError, match=message):
        processor(images=picture(), text="<image>", matryoshka_vis_token_scale=given)
    with pytest.raises(ValueError, match=message):
        processor.count_tokens([(8, 8)], True)


def test_a_reachable_but_untrained_scale_warns_once(
    make_processor: MakeProcessor, caplog: pytest.LogCaptureFixture
) -> None:
    processor = make_processor(nesting={"kind": "grid_pool", "trained_scales": [1, 9, 144]})
    with caplog.at_level(logging.WARNING, logger="m3.processing.token_counts"):
        for _ in range(3):
            processor(images=picture(), text="<image>", matryoshka_vis_token_scale=16)
    said = [
        record.getMessage() for record in caplog.records if "was not trained" in record.getMessage()
    ]
    assert len(said) == 1
    assert said[0].startswith("scale 16 can be reached but was not trained (trained: 1, 9, 144)")


@pytest.mark.parametrize(
    ("keyword", "hint"),
    [
        ("matryoshka_vis_tokens_scale", "did you mean 'matryoshka_vis_token_scale'"),
        ("do_resize", "set it on processor.image_processor"),
        (
            "frobnicate",
            "images are controlled by matryoshka_vis_token_scale, max_pixels, fetch_urls",
        ),
    ],
)
def test_unknown_keywords_are_refused(keyword: str, hint: str, processor: M3Processor) -> None:
    with pytest.raises(ValueError, match=f"unknown keyword '{keyword}'.*{hint}"):
        processor(text="a", **{keyword: 1})
    with pytest.raises(ValueError, match=f"unknown keyword '{keyword}' in images_kwargs"):
        processor(text="a", images_kwargs={keyword: 1})
    with pytest.raises(ValueError, match=f"unknown keyword '{keyword}' in common_kwargs"):
        processor(text="a", common_kwargs={keyword: 1})


def test_grouped_keywords(processor: M3Processor) -> None:
    out = processor(
        images=picture(), text="<image>", images_kwargs={"matryoshka_vis_token_scale": 4}
    )
    assert out["image_scales"].tolist() == [4]
    with pytest.raises(ValueError, match="more than the limit of 5"):
        processor(images=picture(), text="<image>", max_pixels=5)


def test_truncation_never_cuts_an_image(processor: M3Processor) -> None:
    with pytest.raises(ValueError, match="Mismatch in `image` token count"):
        processor(images=picture(), text="<image> a b c", truncation=True, max_length=10)


def test_video_and_audio_are_refused(processor: M3Processor) -> None:
    messages = [{"role": "user", "content": [{"type": "video", "video": [picture()]}]}]
    with pytest.raises(
        TemplateError, match='a message part has type "video"; expected "text" or "image"'
    ):
        processor.apply_chat_template(messages, tokenize=True)
    with pytest.raises(
        ValueError,
        match=r"reads text and images; got videos or audio\. Pass the frames of a "
        r"video as images",
    ):
        processor(text="a", videos=[picture()])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"nesting": {"kind": "spiral", "trained_scales": [1]}},
            "unknown nesting kind 'spiral'; known: grid_pool, query_prefix",
        ),
        (
            {"nesting": {"kind": "grid_pool", "trained_scales": [100]}},
            "scale 100 cannot be reached",
        ),
        ({"nesting": {"kind": "grid_pool", "trained_scales": []}}, "trained_scales is empty"),
        ({"nesting": {"kind": "grid_pool"}}, "exactly the keys kind and trained_scales, got kind"),
        (
            {"image_token": "<picture>"},
            "the tokenizer has no token <picture>. Add with tokenizer.add_tokens",
        ),
    ],
)
def test_a_processor_that_cannot_work_is_not_made(
    settings: dict, message: str, make_processor: MakeProcessor
) -> None:
    with pytest.raises(ValueError, match=message):
        make_processor(**settings)


# ---------------------------------------------------------------------- for servers
def test_number_of_placeholders_without_loading(processor: M3Processor) -> None:
    planned = processor._get_num_multimodal_tokens(
        [[10, 20], [30, 40]], matryoshka_vis_token_scale=[9, 144]
    )
    assert planned.num_image_tokens == [9, 144]
    assert planned.num_image_patches == [1, 1]
    assert processor._get_num_multimodal_tokens().num_image_tokens is None


def test_bytes_are_one_image_not_a_sequence(processor: M3Processor) -> None:
    buffer = io.BytesIO()
    picture().save(buffer, "PNG")
    assert processor(images=buffer.getvalue(), text="<image>")["pixel_values"].shape[0] == 1
    assert np.isfinite(processor(images=buffer.getvalue())["pixel_values"].numpy()).all()


def test_text_before_images_is_told_apart(processor: M3Processor) -> None:
    picture = Image.new("RGB", (8, 8), "red")
    expected = processor(picture, "<image>\nhi")
    for images in (picture, [picture]):
        swapped = processor("<image>\nhi", images)
        assert torch.equal(swapped["input_ids"], expected["input_ids"])
        assert torch.equal(swapped["pixel_values"], expected["pixel_values"])
    with pytest.raises(ValueError, match="text must be a string or a list of strings, got Image"):
        processor(picture, picture)


def test_a_prompt_without_an_image_may_say_none(processor: M3Processor) -> None:
    a, b, c = (Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue"))
    texts = ["<image> x", "y", "<image><image> z"]
    given, expected = processor([[a], None, [b, c]], texts), processor([[a], [], [b, c]], texts)
    assert all(torch.equal(given[name], expected[name]) for name in expected)
    assert len(given["pixel_values"]) == 3
