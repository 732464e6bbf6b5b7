"""Elastic resolution: one model sees images at several sizes, alone and mixed in a batch."""

from typing import Any

import pytest
import torch
from tiny_models import IMAGE, make_config, make_model, prompt
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from m3.model import M3ForConditionalGeneration
from m3.model.cost import CostModel
from m3.model.image_inputs import ImageInputs
from m3.nesting import Budget

LADDER = ["1@12", "9@12", "9@24", "36@24", 9, 144]
NESTING = {"kind": "grid_pool", "trained_scales": LADDER}
ELASTIC = ("siglip_vision_model", "clip_vision_model", "dinov2", "siglip2_vision_model")


def inputs(
    model: M3ForConditionalGeneration, images: list[tuple[Tensor, Budget]]
) -> dict[str, Any]:
    """One prompt with an image per budget; images `[3, 48, 48]` are shrunk to its resolution."""
    side = model.config.tile_side(None)
    pixels, mask = torch.zeros(len(images), 3, side, side), torch.zeros(len(images), side, side)
    for place, (image, budget) in enumerate(images):
        size = model.config.tile_side(budget.resolution)
        small = torch.nn.functional.interpolate(image[None], (size, size), mode="area")[0]
        pixels[place, :, :size, :size], mask[place, :size, :size] = small, 1
    ids = [token for _, budget in images for token in prompt(budget.tokens, 7, 8)]
    tiles = [model.config.tiles(budget.resolution) for _, budget in images]
    return {
        "input_ids": torch.tensor([ids]),
        "pixel_values": pixels,
        "pixel_mask": mask.bool(),
        "image_scales": torch.tensor([budget.tokens for _, budget in images]),
        "tile_tokens": torch.tensor([tile.tokens or 0 for tile in tiles]),
        "image_resolutions": torch.tensor([tile.resolution or 0 for tile in tiles]),
    }


@pytest.mark.parametrize("vision", ELASTIC)
def test_a_low_resolution_is_what_the_tower_sees_of_the_small_picture(vision: str) -> None:
    model = make_model(vision=vision, nesting=NESTING)
    small = torch.rand(2, 3, 24, 24)
    features = model.get_image_features(small).pooler_output
    assert features.shape == (2, 36, 32)
    padded, mask = torch.full((2, 3, 48, 48), 9.0), torch.zeros(2, 48, 48, dtype=torch.bool)
    padded[:, :, :24, :24], mask[:, :24, :24] = small, True
    torch.testing.assert_close(model.get_image_features(padded, mask).pooler_output, features)
    if vision in ("siglip_vision_model", "clip_vision_model"):
        tower = model.model.vision_tower(small, interpolate_pos_encoding=True).last_hidden_state
        own = model.model.connector(tower[:, model.config.drop_class_token :])
        torch.testing.assert_close(features, own)


def test_positions_of_the_largest_resolution_are_not_interpolated() -> None:
    model, pixels = make_model(nesting=NESTING), torch.rand(1, 3, 48, 48)
    plain = make_model().get_image_features(pixels).pooler_output
    assert torch.equal(model.get_image_features(pixels).pooler_output, plain)


@pytest.mark.parametrize("vision", ELASTIC)
def test_a_batch_of_several_resolutions_reads_as_each_alone(vision: str) -> None:
    model = make_model(vision=vision, nesting=NESTING)
    images = [(torch.rand(3, 48, 48), budget) for budget in model.config.nesting.ladder]
    alone = [
        model.model.embed(batch["input_ids"], *_spans(model, batch))
        for batch in (inputs(model, [image]) for image in images)
    ]
    batch = inputs(model, images)
    together = model.model.embed(batch["input_ids"], *_spans(model, batch))
    torch.testing.assert_close(together, torch.cat(alone, dim=1), atol=1e-5, rtol=1e-5)


def _spans(model: M3ForConditionalGeneration, batch: dict[str, Any]) -> tuple[Any, Any]:
    images = ImageInputs(**{name: value for name, value in batch.items() if name != "input_ids"})
    return images, images.spans(model.config.reader)


def test_losses_are_named_by_budget() -> None:
    model = make_model(nesting=NESTING)
    batch = inputs(
        model, [(torch.rand(3, 48, 48), budget) for budget in (Budget(9, 24), Budget(9))]
    )
    labels = torch.where(batch["input_ids"] == IMAGE, -100, batch["input_ids"])
    output = model(**batch, labels=labels)
    assert (output.scales.tolist(), output.resolutions.tolist()) == ([9, 9], [24, 0])
    # three words behind each image, and the first of the second prompt
    assert output.scale_loss_counts.tolist() == [4, 3]


@pytest.mark.parametrize(
    ("vision", "ladder", "message"),
    [
        ("internvl_vision", ["9@24"], "internvl_vision sees images of 48 pixels alone, not of 24"),
        ("siglip_vision_model", ["9@26"], "resolution 26 is no multiple of a patch"),
        ("siglip_vision_model", ["16@24"], "scale 16 cannot be reached exactly from a 6x6 grid"),
    ],
)
def test_what_a_tower_cannot_see_is_refused(vision: str, ladder: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(vision=vision, nesting={"kind": "grid_pool", "trained_scales": ladder})


@pytest.mark.parametrize(
    ("vision", "side", "message"),
    [
        ("internvl_vision", 24, "internvl_vision sees images of 48 pixels alone, not of 24"),
        ("clip_vision_model", 26, "resolution 26 is no multiple of a patch"),
    ],
)
def test_pixels_that_a_tower_cannot_see_are_refused(vision: str, side: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(vision=vision).get_image_features(torch.rand(1, 3, side, side))


def test_a_resampler_reads_every_resolution() -> None:
    nesting = {"kind": "query_prefix", "trained_scales": ["4@24", 16]}
    connector = {"kind": "resampler", "num_queries": 16, "num_heads": 4}
    model = make_model(connector=connector, nesting=nesting)
    features = [model.get_image_features(torch.rand(1, 3, s, s)).pooler_output for s in (24, 48)]
    assert [seen.shape for seen in features] == [(1, 16, 32), (1, 16, 32)]


def test_gradients_of_a_packed_ladder_equal_the_loop_over_budgets() -> None:
    image = torch.rand(3, 48, 48)
    grads = []
    for is_packed in (True, False):
        model = make_model(nesting=NESTING).train()
        model.requires_grad_(True)
        ladder = model.config.nesting.ladder
        groups = [ladder] if is_packed else [[budget] for budget in ladder]
        for group in groups:
            batch = inputs(model, [(image, budget) for budget in group])
            labels = torch.where(batch["input_ids"] == IMAGE, -100, batch["input_ids"])
            lengths = [budget.tokens + 4 for budget in group]
            positions = torch.cat([torch.arange(length) for length in lengths])[None]
            output = model(
                **batch, labels=labels, position_ids=positions,
                sequence_lengths=torch.tensor([lengths]), num_items_in_batch=float(len(ladder)),
            )  # fmt: skip
            output.language_loss.backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], atol=2e-4, rtol=2e-3, msg=name)


def test_every_training_step_calls_the_tower_once_per_resolution() -> None:
    """Ranks run the same modules, whether their batches show all resolutions, one, or no image."""
    model = make_model(nesting=NESTING).train()
    calls: list[int] = []
    model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    picture = torch.rand(3, 48, 48)
    batches = [
        inputs(model, [(picture, Budget(1, 12)), (picture, Budget(36, 24)), (picture, Budget(9))]),
        inputs(model, [(picture, Budget(9))]),
        {"input_ids": torch.tensor([[5, 6, 7]])},
    ]
    for batch in batches:
        calls.clear()
        model(**batch)
        assert len(calls) == 3
    model.eval()
    calls.clear()
    model(**batches[1])
    assert len(calls) == 1


def test_cost_follows_the_resolution() -> None:
    model = make_model(nesting=NESTING)
    model.set_attn_implementation("eager")  # what FlopCounterMode counts on a CPU
    formulas = CostModel(model)
    low, full = formulas.cost("9@24", 10), formulas.cost(9, 10)
    assert (low.scale, full.scale) == ("9@24", 9)
    assert low.prefill_flops == full.prefill_flops
    with FlopCounterMode(display=False) as counter:
        model.get_image_features(torch.rand(1, 3, 24, 24))
    assert low.vision_flops + low.connector_flops == counter.get_total_flops()
