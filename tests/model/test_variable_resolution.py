"""Aria's encoder: tiles of several sizes in one batch, padding, and layers that nothing reads."""

import pytest
import torch
from tiny_models import make_model
from torch import Tensor

from m3.model import M3ForConditionalGeneration
from m3.model.vision import patch_mask, vision_inputs

PATCH = 4
CONNECTOR = {
    "kind": "aria_projector",
    "num_queries": 6,
    "num_heads": 4,
    "patch_queries": [(36, 3), (144, 6)],
}


def aria(feature_layer: int | None = -1) -> M3ForConditionalGeneration:
    return make_model(
        vision="idefics3_vision",
        connector=CONNECTOR,
        nesting={"kind": "query_prefix"},
        tiling={"kind": "tiles"},
        vision_feature_layer=feature_layer,
    )


def padded(*shapes: tuple[int, int], side: int = 48) -> tuple[Tensor, Tensor]:
    """Random pixels and the mask of images of these (height, width) in the corner of their
    tiles.
    """
    mask = torch.zeros(len(shapes), side, side, dtype=torch.bool)
    for tile, (height, width) in zip(mask, shapes, strict=True):
        tile[:height, :width] = True
    return torch.randn(len(shapes), 3, side, side, generator=torch.Generator().manual_seed(3)), mask


def test_each_size_is_seen_as_if_alone() -> None:
    """The numbers of a tile depend neither on the other tiles nor on what pads it to their size."""
    model = aria()
    shapes = [(48, 30), (24, 18), (48, 48), (9, 24)]
    pixels, mask = padded(*shapes)
    with torch.no_grad():
        together = model.get_image_features(pixels, mask)
        noisy = model.get_image_features(
            torch.where(mask[:, None], pixels, 9 * torch.ones(())), mask
        )
    assert together.tile_tokens.tolist() == [6, 3, 6, 3]
    assert together.pooler_output.shape == (4, 6, 32)
    for number, shape in enumerate(shapes):
        side, tokens = max(shape), int(together.tile_tokens[number])
        row = slice(number, number + 1)
        with torch.no_grad():
            alone = model.get_image_features(pixels[row, :, :side, :side], mask[row, :side, :side])
        assert alone.pooler_output.shape == (1, tokens, 32)
        torch.testing.assert_close(
            together.pooler_output[number, :tokens], alone.pooler_output[0], rtol=0, atol=1e-5
        )
        assert not together.pooler_output[number, tokens:].any()
    first, rest = noisy.pooler_output[2], together.pooler_output[2]  # a tile without padding
    assert torch.equal(first, rest)


def test_features_are_those_before_the_last_norm() -> None:
    model = aria()
    pixels, mask = padded((48, 30))
    with torch.no_grad():
        features = model.get_image_features(pixels, mask).last_hidden_state
        tower = model.model.vision_tower
        normed = tower(
            pixels, patch_attention_mask=patch_mask(model.config.vision_config, mask)
        ).last_hidden_state
    torch.testing.assert_close(tower.post_layernorm(features), normed)
    assert (features - normed).abs().max() > 0.1


def test_a_patch_shows_the_image_if_one_pixel_does() -> None:
    model = aria()
    _, mask = padded((48, 29))
    assert patch_mask(model.config.vision_config, mask)[0, 0].tolist() == [True] * 8 + [False] * 4


@pytest.mark.parametrize(
    ("layer", "unread"),
    [
        (None, ()),
        (-1, ("post_layernorm",)),
        (-2, ("post_layernorm", "encoder.layers.1")),
        (2, ("post_layernorm",)),
    ],
)
def test_what_nothing_reads_is_frozen(layer: int | None, unread: tuple[str, ...]) -> None:
    model = aria(layer)
    config = model.config
    assert vision_inputs(config.vision_config).unread(config.vision_config, layer) == unread
    tower = model.model.vision_tower
    model.train()
    pixels, mask = padded((48, 30))
    model.get_image_features(pixels, mask).pooler_output.square().sum().backward()
    for name, parameter in tower.named_parameters():
        assert parameter.requires_grad == (not name.startswith(unread or "nothing")), name
        assert parameter.requires_grad == (parameter.grad is not None), name


def test_padding_is_refused_where_it_cannot_be_left_out() -> None:
    model = make_model(vision="idefics3_vision", vision_feature_layer=-1)
    pixels, mask = padded((48, 30))
    with pytest.raises(
        ValueError, match="the connector mlp2x_gelu cannot leave padding out; give no pixel_mask"
    ):
        model.get_image_features(pixels, mask)


def test_a_tile_of_another_size_is_refused() -> None:
    pixels, mask = padded((20, 20))
    with pytest.raises(ValueError, match="reads tiles of 36, 144 patches, but got 25"):
        aria().get_image_features(pixels, mask)


def test_a_batch_without_images_still_runs_every_part_on_the_smallest_tile() -> None:
    model = aria().train()
    sizes: list[torch.Size] = []
    model.model.vision_tower.embeddings.register_forward_pre_hook(
        lambda _module, _args, kwargs: sizes.append(kwargs["pixel_values"].shape), with_kwargs=True
    )
    ids = torch.tensor([[5, 6, 7]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert sizes == [(1, 3, 24, 24)]
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
