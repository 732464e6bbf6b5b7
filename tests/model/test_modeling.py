"""The model: parts by configuration alone, splice, generation at mixed scales, round trips,
errors.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import DECODERS, IMAGE, MOE, VISION, batch, make_config, make_model, prompt
from transformers import AutoConfig, AutoModelForImageTextToText

import m3.auto
from m3.model import M3Config, M3ForConditionalGeneration

SCALES = (1, 4, 9, 144)


def four_scales() -> tuple[list[list[int]], torch.Tensor]:
    return [prompt(scale, 10 + scale % 7, 11, 12) for scale in SCALES], torch.tensor(SCALES)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("vision", VISION)
def test_any_encoder_with_any_decoder_by_configuration(
    decoder: str, vision: str, pixels: torch.Tensor
) -> None:
    model = make_model(decoder=decoder, vision=vision)
    rows, scales = four_scales()
    output = model(
        **batch(rows), pixel_values=pixels, image_scales=scales, labels=batch(rows)["input_ids"]
    )
    assert output.logits.shape == (4, 149, 96)
    assert torch.isfinite(output.loss)
    assert output.scales.tolist() == [0, 1, 4, 9, 144]  # 0: label tokens before the image
    assert (output.balance_losses is not None) == (decoder in MOE)
    output.loss.backward()
    assert all(p.grad is not None for p in model.model.connector.parameters())
    other = model(**batch(rows), pixel_values=pixels.flip(0), image_scales=scales)
    assert (other.logits[:, -1] - output.logits[:, -1]).abs().max() > 1e-3, (
        "the text does not see the image"
    )


@pytest.mark.parametrize("decoder", DECODERS)
def test_four_images_at_four_scales_generate_what_four_calls_generate(
    decoder: str, pixels: torch.Tensor
) -> None:
    model = make_model(decoder=decoder)
    rows, scales = four_scales()
    together = model.generate(
        **batch(rows), pixel_values=pixels, image_scales=scales, max_new_tokens=6, do_sample=False
    )
    for n, row in enumerate(rows):
        alone = model.generate(
            **batch([row]),
            pixel_values=pixels[n : n + 1],
            image_scales=scales[n : n + 1],
            max_new_tokens=6,
            do_sample=False,
        )
        assert (
            together[n, 149:].tolist()[: alone.shape[1] - len(row)] == alone[0, len(row) :].tolist()
        )


def test_features_seen_once_give_the_same_as_pixels(pixels: torch.Tensor) -> None:
    model, (rows, scales) = make_model(), four_scales()
    with torch.no_grad():
        seen = model.get_image_features(pixels).pooler_output
        direct = model(**batch(rows), pixel_values=pixels, image_scales=scales).logits
        reread = model(**batch(rows), image_features=seen, image_scales=scales).logits
    assert seen.shape == (4, 144, 32)
    assert torch.equal(direct, reread)


def test_several_spans_read_one_image_at_different_scales(pixels: torch.Tensor) -> None:
    model = make_model()
    rows = [prompt(9, 10) + prompt(4, 11) + prompt(1, 12), prompt(36, 13)]
    scales, index = torch.tensor([9, 4, 1, 36]), torch.tensor([1, 0, 1, 1])
    once = model(
        **batch(rows), pixel_values=pixels[:2], image_scales=scales, image_index=index
    ).logits
    copied = model(**batch(rows), pixel_values=pixels[:2][index], image_scales=scales).logits
    torch.testing.assert_close(once, copied, rtol=1e-5, atol=1e-5)


def test_beams_and_several_answers_keep_each_row_with_its_images(pixels: torch.Tensor) -> None:
    model = make_model()
    rows = [prompt(9, 10) + prompt(4, 11), prompt(1, 12), prompt(36, 13)]
    inputs = {**batch(rows), "pixel_values": pixels, "image_scales": torch.tensor([9, 4, 1, 36])}
    greedy = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    torch.manual_seed(0)
    copies = model.generate(
        **inputs, max_new_tokens=4, do_sample=True, top_k=1, num_return_sequences=3
    )
    assert torch.equal(copies, greedy.repeat_interleave(3, 0))
    assert model.generate(**inputs, max_new_tokens=4, num_beams=2).shape[0] == 3


def test_resampler_prefix_is_what_fewer_queries_give_and_keys_carry_content() -> None:
    few = make_model(
        connector={"kind": "resampler", "num_queries": 16, "num_heads": 4},
        nesting={"kind": "query_prefix"},
    )
    connector, features = few.model.connector, torch.randn(2, 144, 24)
    whole = connector(features)
    connector.query.data = connector.query.data[:5]
    torch.testing.assert_close(connector(features), whole[:, :5], rtol=1e-5, atol=1e-6)
    connector.position.data *= 20  # so that attention is far from uniform
    whole = connector(features)
    shuffled = features[:, torch.randperm(144, generator=torch.Generator().manual_seed(0))]
    assert (connector(shuffled) - whole).abs().max() > 1e-3, "positions do not matter"


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("shard", ["1GB", "20KB"])
def test_save_and_load_round_trip_exactly(
    decoder: str, shard: str, tmp_path: Path, pixels: torch.Tensor
) -> None:
    model, (rows, scales) = make_model(decoder=decoder), four_scales()
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "20KB")
    loaded, report = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(loaded, M3ForConditionalGeneration)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    reread = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(reread, M3Config)
    assert reread.text_config.model_type == decoder
    for name in (
        "connector",
        "nesting",
        "image_token_id",
        "vision_feature_layer",
        "drop_class_token",
        "router_z_coef",
    ):
        assert (
            reread.to_dict()[name] == model.config.to_dict()[name] == loaded.config.to_dict()[name]
        )
    for (name, ours), theirs in zip(
        model.state_dict().items(), loaded.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    inputs = {**batch(rows), "pixel_values": pixels, "image_scales": scales}
    assert torch.equal(model(**inputs).logits, loaded.eval()(**inputs).logits)


def test_experts_implementations_agree(pixels: torch.Tensor) -> None:
    model, (rows, scales) = make_model(), four_scales()
    inputs = {**batch(rows), "pixel_values": pixels, "image_scales": scales}
    grouped = model(**inputs).logits
    model.set_experts_implementation("eager")
    torch.testing.assert_close(model(**inputs).logits, grouped, rtol=1e-4, atol=1e-5)
    assert model.config.text_config._experts_implementation == "eager"


def test_last_logits_only(pixels: torch.Tensor) -> None:
    model, (rows, scales) = make_model(), four_scales()
    inputs = {**batch(rows), "pixel_values": pixels, "image_scales": scales}
    torch.testing.assert_close(
        model(**inputs, logits_to_keep=1).logits, model(**inputs).logits[:, -1:]
    )


def test_placeholders_and_images_must_agree(pixels: torch.Tensor) -> None:
    model = make_model()
    inputs = batch([prompt(9, 10), prompt(4, 11)])
    with pytest.raises(
        ValueError,
        match=r"13 image placeholders, but image_scales \[9, 9\] ask "
        r"for 18",
    ):
        model(**inputs, pixel_values=pixels[:2], image_scales=torch.tensor([9, 9]))
    with pytest.raises(
        ValueError,
        match=r"span 0 of scale 4 would run over|span 1 of scale 9 would run over the "
        r"end of row 0",
    ):
        model(**inputs, pixel_values=pixels[:2], image_scales=torch.tensor([4, 9]))
    with pytest.raises(ValueError, match="13 image placeholders, but no pixel_values"):
        model(**inputs)
    with pytest.raises(ValueError, match="images were given without image_scales"):
        model(**inputs, pixel_values=pixels[:2])
    with pytest.raises(ValueError, match="2 placeholder spans but 4 images: image_index must say"):
        model(**inputs, pixel_values=pixels, image_scales=torch.tensor([9, 4]))
    with pytest.raises(ValueError, match=r"image_index spans \[0, 7\], but there are 2 images"):
        model(
            **inputs,
            pixel_values=pixels[:2],
            image_scales=torch.tensor([9, 4]),
            image_index=torch.tensor([0, 7]),
        )
    with pytest.raises(ValueError, match="pixel_values or image_features"):
        model(
            **inputs,
            pixel_values=pixels[:2],
            image_features=torch.zeros(2, 144, 32),
            image_scales=torch.tensor([9, 4]),
        )
    with pytest.raises(
        ValueError, match="scale 13 .* 12x12 grid; choose one of 1, 4, 9, 16, 36, 144"
    ):
        model(**batch([prompt(13, 10)]), pixel_values=pixels[:1], image_scales=torch.tensor([13]))


def test_scales_in_another_order_than_the_images_of_a_row_are_refused(pixels: torch.Tensor) -> None:
    ids = torch.tensor([[5, IMAGE, 7, *[IMAGE] * 9, 6]])
    with pytest.raises(
        ValueError,
        match="span 0 of scale 9 .*text between them: image_scales must stand in the order",
    ):
        make_model()(input_ids=ids, pixel_values=pixels[:2], image_scales=torch.tensor([9, 1]))


def test_generate_refuses_more_images_than_the_text_shows(pixels: torch.Tensor) -> None:
    inputs = batch([prompt(9, 8)]) | {
        "pixel_values": pixels[:2],
        "image_scales": torch.tensor([9, 9]),
    }
    for beams in (1, 2):
        with pytest.raises(
            ValueError,
            match=r"9 image placeholders, but image_scales \[9, 9\] ask "
            r"for 18: \[9, 9\]",
        ):
            make_model().generate(**inputs, max_new_tokens=2, num_beams=beams)


@pytest.mark.parametrize(
    "options", [{"prompt_lookup_num_tokens": 3}, {"assistant_model": make_model(1)}]
)
def test_assisted_generation_says_the_same(options: dict, pixels: torch.Tensor) -> None:
    inputs = batch([prompt(9, 8)]) | {"pixel_values": pixels[:1], "image_scales": torch.tensor([9])}
    alone, assisted = (
        make_model().generate(**inputs, max_new_tokens=8, do_sample=False, **more)
        for more in ({}, options)
    )
    assert alone.tolist() == assisted.tolist()


def test_a_label_beyond_the_vocabulary_is_refused(pixels: torch.Tensor) -> None:
    ids = torch.tensor([[5, *[200] * 9, 6]])
    with pytest.raises(
        ValueError, match="the image placeholder 200, which lies beyond the 96 tokens .* to -100"
    ):
        make_model(image_token_id=200)(
            input_ids=ids, pixel_values=pixels[:1], image_scales=torch.tensor([9]), labels=ids
        )


def test_a_tower_in_fewer_bits_than_the_rest(pixels: torch.Tensor) -> None:
    model, (rows, scales) = make_model(), four_scales()
    full = model(**batch(rows), pixel_values=pixels, image_scales=scales).logits
    model.model.vision_tower.bfloat16()
    less = model(**batch(rows), pixel_values=pixels, image_scales=scales).logits
    assert less.dtype == torch.float32
    assert 0 < (full - less).abs().max() < 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"nesting": {"kind": "grid_pool", "trained_scales": ["1", "9x9"]}},
            "trained_scales .*'9x9' is no visual budget: expected .* such as 36",
        ),
        (
            {"nesting": {"kind": "grid_pool", "trained_scales": [True, 9]}},
            "trained_scales .*True is no visual budget",
        ),
        ({"connector": {"kind": "resampler", "num_queries": 0}}, "must be at least 1, got 0 and 8"),
    ],
)
def test_numbers_that_a_configuration_cannot_have(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(**changes)


def test_configuration_refuses_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="scale 100 cannot be reached .* 1, 4, 9, 16, 36, 144"):
        make_config(nesting={"kind": "grid_pool", "trained_scales": [100]})
    with pytest.raises(
        ValueError, match="unknown connector kind 'mlp'; known: mlp2x_gelu, linear, resampler"
    ):
        make_config(connector={"kind": "mlp"})
    with pytest.raises(
        ValueError, match="connector mlp2x_gelu has no queries; its settings are kind"
    ):
        make_config(connector={"queries": 3})
    assert make_config(nesting={"kind": "grid_pool"}).nesting.trained_scales == (144,)


def test_a_placeholder_that_the_model_writes_itself_stands_for_itself(pixels: torch.Tensor) -> None:
    model = make_model()
    inputs = {
        **batch([prompt(4, 10)]),
        "pixel_values": pixels[:1],
        "image_scales": torch.tensor([4]),
    }
    output = model(**inputs, use_cache=True)
    following = model(
        input_ids=torch.tensor([[IMAGE]]), past_key_values=output.past_key_values, use_cache=True
    )
    assert following.logits.shape == (1, 1, 96)


def test_text_without_images_needs_none() -> None:
    model = make_model()
    inputs = batch([[5, 6, 7], [8, 9]])
    assert model(**inputs).logits.shape == (2, 3, 96)
    model.train()
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert all(p.grad is not None for p in model.model.vision_tower.encoder.parameters()), (
        "a rank without images must run the tower"
    )


def test_a_batch_without_labels_asks_no_router_and_keeps_no_scale(pixels: torch.Tensor) -> None:
    model, (rows, scales) = make_model(), four_scales()
    output = model(**batch(rows), pixel_values=pixels, image_scales=scales)
    assert output.loss is None
    assert output.balance_losses is None
    assert output.past_key_values is None
    assert not any("scale" in name for name in vars(model))
    assert model.config.image_token_id == IMAGE


def test_public_names() -> None:
    assert m3.M3Config is M3Config
    assert m3.M3ForConditionalGeneration is M3ForConditionalGeneration


def answered(model: M3ForConditionalGeneration, **inputs: Any) -> Any:
    """Four tokens of greedy decoding, with the cache."""
    return model.generate(
        **inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False, return_dict_in_generate=True
    )


@pytest.mark.parametrize("given", ["all", "new", "neither"])
@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("rows", [1, 2])
def test_generate_goes_on_from_a_cache(
    given: str, beams: int, rows: int, pixels: torch.Tensor
) -> None:
    """A second turn with the first turn's cache says what a fresh run does, whichever images are
    given.
    """
    model = make_model()
    first = [prompt(9, 8), prompt(4, 13)][:rows]
    scales = [9, 4][:rows]
    start = batch(first)
    images = {"pixel_values": pixels[:rows], "image_scales": torch.tensor(scales)}
    if beams == 1:
        kept = answered(model, **start, **images)
        cache, ids = kept.past_key_values, kept.sequences
    else:  # a cache of beams has a row for each
        with torch.no_grad():
            cache, ids = (
                model(**start, **images, use_cache=True).past_key_values,
                start["input_ids"],
            )
        cache.batch_repeat_interleave(beams)
    more = (
        [[7, *([IMAGE] * 4), 8], [*([IMAGE] * 4), 7, 8]][:rows]
        if given != "neither"
        else [[7, 8]] * rows
    )
    both = torch.cat([ids, torch.tensor(more)], dim=1)
    mask = torch.cat(
        [
            start["attention_mask"],
            torch.ones(rows, both.shape[1] - start["input_ids"].shape[1]).long(),
        ],
        1,
    )
    every = images
    if given != "neither":
        order = [0, 2, 1, 3] if rows == 2 else [0, 2]
        every = {
            "pixel_values": pixels[order],
            "image_scales": torch.tensor([9, 4, 4, 4][: 2 * rows]),
        }
    new = {"pixel_values": pixels[2 : 2 + rows], "image_scales": torch.tensor([4] * rows)}
    second = {"all": every, "new": new, "neither": {}}[given]
    fresh = answered(model, input_ids=both, attention_mask=mask, num_beams=beams, **every)
    onwards = answered(
        model,
        input_ids=both,
        attention_mask=mask,
        num_beams=beams,
        past_key_values=copy.deepcopy(cache),
        **second,
    )
    assert onwards.sequences.tolist() == fresh.sequences.tolist()
    if given == "neither":  # all inputs of both turns, without a new image
        again = answered(
            model,
            input_ids=both,
            attention_mask=mask,
            num_beams=beams,
            past_key_values=cache,
            **every,
        )
        assert again.sequences.tolist() == fresh.sequences.tolist()


def test_a_cache_that_ends_inside_an_image_is_refused(pixels: torch.Tensor) -> None:
    model, inputs = make_model(), batch([[5, *[IMAGE] * 9, 6, 7]])
    images = {"pixel_values": pixels[:1], "image_scales": torch.tensor([9])}
    with torch.no_grad():
        cache = model(**inputs, **images, use_cache=True).past_key_values
    cache.crop(-8)
    with pytest.raises(
        ValueError,
        match="cache of 4 tokens ends between the 9 placeholders of image span 0: crop "
        "3 tokens more off it",
    ):
        model.generate(**inputs, **images, past_key_values=cache, max_new_tokens=2)
    cache.crop(-3)
    plain = model.generate(**inputs, **images, max_new_tokens=4, do_sample=False)
    onwards = model.generate(
        **inputs, **images, past_key_values=cache, max_new_tokens=4, do_sample=False
    )
    assert onwards.tolist() == plain.tolist()


def test_candidates_of_prompt_lookup_may_hold_placeholders(pixels: torch.Tensor) -> None:
    inputs = batch([[5, 6, *[IMAGE] * 9, 7, 5, 6]]) | {
        "pixel_values": pixels[:1],
        "image_scales": torch.tensor([9]),
    }
    alone, assisted = (
        make_model().generate(**inputs, max_new_tokens=8, do_sample=False, **more)
        for more in ({}, {"prompt_lookup_num_tokens": 3})
    )
    assert alone.tolist() == assisted.tolist()
