"""Pixel shuffle equals transformers' InternVL: patches, projector, gradients."""

import pytest
import torch
from tiny_models import make_config
from torch import Tensor, nn
from transformers import InternVLConfig, InternVLModel, InternVLVisionConfig, Qwen3Config
from transformers.models.internvl.modeling_internvl import InternVLMultiModalProjector

from m3.model.connectors import ConnectorSizes
from m3.model.connectors.pixel_shuffle import PixelShuffle, PixelShuffleConfig

NAMES = {"layer_norm": "norm", "linear_1": "linear_in", "linear_2": "linear_out"}
WIDTH, TEXT_WIDTH = 20, 28


def published(features: Tensor, side: int, ratio: float, projector: nn.Module) -> Tensor:
    """As `InternVLModel.get_image_features` goes on from the patches."""
    tiles = len(features)
    square = features.reshape(tiles, side, side, -1)
    # the method does not look at the model
    shuffled = InternVLModel.pixel_shuffle(None, square, scale_factor=ratio)  # pyright: ignore[reportArgumentType]
    return projector(shuffled.reshape(tiles, -1, shuffled.shape[-1]))


@pytest.mark.parametrize(("side", "downsample"), [(24, 2), (32, 2), (12, 4), (6, 1)])
def test_tokens_and_gradients_equal_those_of_transformers(side: int, downsample: int) -> None:
    """float32, within 1e-6: the same products, in modules of other names."""
    torch.manual_seed(side)
    theirs = InternVLMultiModalProjector(
        InternVLConfig(
            vision_config=InternVLVisionConfig(hidden_size=WIDTH),
            text_config=Qwen3Config(hidden_size=TEXT_WIDTH),
            downsample_ratio=1 / downsample,
        )
    )
    config = PixelShuffleConfig(kind="pixel_shuffle", downsample=downsample)
    ours = PixelShuffle(config, ConnectorSizes((side, side), WIDTH, TEXT_WIDTH))
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    for their_name, our_name in NAMES.items():
        ours.get_submodule(our_name).load_state_dict(theirs.get_submodule(their_name).state_dict())
    features = torch.randn(3, side * side, WIDTH, requires_grad=True)
    expected = published(features, side, 1 / downsample, theirs)
    (expected_gradient,) = torch.autograd.grad(expected.sin().sum(), features)
    tokens = ours(features)
    (gradient,) = torch.autograd.grad(tokens.sin().sum(), features)
    assert tokens.shape == (3, (side // downsample) ** 2, TEXT_WIDTH)
    torch.testing.assert_close(tokens, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-6)


def test_a_token_shows_its_square_alone() -> None:
    """Also of a grid that is no square: token (0, 1) of 4 x 6 patches reads columns 2 and 3."""
    ours = PixelShuffle(PixelShuffleConfig(kind="pixel_shuffle"), ConnectorSizes((4, 6), 3, 5))
    features = torch.randn(1, 24, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(ours(features)[0, 1].sum(), features)
    rows_and_columns = {
        divmod(patch, 6) for patch in gradient[0].abs().sum(1).nonzero()[:, 0].tolist()
    }
    assert rows_and_columns == {(0, 2), (0, 3), (1, 2), (1, 3)}


def test_a_quarter_of_the_tokens_is_nested_further() -> None:
    config = make_config(
        connector={"kind": "pixel_shuffle"},
        nesting={"kind": "grid_pool", "trained_scales": [1, 9, 36]},
    )
    assert config.grid == (6, 6)
    assert config.reader.nesting.reachable(config.grid) == (1, 4, 9, 36)


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"downsample must be at least 1, got 0"):
        PixelShuffleConfig(kind="pixel_shuffle", downsample=0)
    with pytest.raises(ValueError, match=r"downsample 5 does not divide .* grid of 12 x 12"):
        make_config(connector={"kind": "pixel_shuffle", "downsample": 5})
    with pytest.raises(ValueError, match="has no num_queries; its settings are kind, downsample"):
        make_config(connector={"kind": "pixel_shuffle", "num_queries": 3})
