"""Aria's projector against transformers' own; prefixes, padding, and tiles it was not made for."""

import pytest
import torch
from tiny_models import make_config, make_model
from torch import Tensor
from transformers import AriaConfig
from transformers.models.aria.modeling_aria import AriaProjector as TheirProjector

from m3.model.backbone import build_connector
from m3.model.connectors import connector_config
from m3.model.connectors.aria import AriaProjector

PATCH_QUERIES = ((4, 3), (16, 6))
SAME = 1e-5  # measured: 1.5e-6, of values up to 5.3

NAMES = {
    "query": "query",
    "cross_attention.norm_query": "cross_attn.layer_norm",
    "cross_attention.norm_features": "cross_attn.layer_norm_kv",
    "cross_attention.q_proj": "cross_attn.q_proj",
    "cross_attention.k_proj": "cross_attn.k_proj",
    "cross_attention.v_proj": "cross_attn.v_proj",
    "cross_attention.in_proj": "cross_attn.multihead_attn.in_proj",
    "cross_attention.out_proj": "cross_attn.multihead_attn.out_proj",
    "cross_attention.linear": "cross_attn.linear",
    "norm_out": "layer_norm",
    "linear_in": "feed_forward.linear_in",
    "linear_out": "feed_forward.linear_out",
}


def theirs_name(name: str) -> str:
    ours = next(
        prefix for prefix in sorted(NAMES, key=len, reverse=True) if name.startswith(prefix)
    )
    return NAMES[ours] + name.removeprefix(ours)


@pytest.fixture
def ours() -> AriaProjector:
    torch.manual_seed(0)
    connector = {
        "kind": "aria_projector",
        "num_queries": 6,
        "num_heads": 4,
        "patch_queries": PATCH_QUERIES,
    }
    projector = build_connector(make_config(connector=connector, nesting={"kind": "query_prefix"}))
    assert isinstance(projector, AriaProjector)
    for parameter in projector.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return projector


@pytest.fixture
def theirs(ours: AriaProjector) -> TheirProjector:
    config = AriaConfig(
        vision_config={
            "model_type": "idefics3_vision",
            "hidden_size": 24,
            "num_attention_heads": 4,
        },
        text_config={"model_type": "aria_text", "hidden_size": 32, "num_attention_heads": 4},
        projector_patch_to_query_dict=dict(PATCH_QUERIES),
    )
    projector = TheirProjector(config)
    projector.load_state_dict(
        {theirs_name(name): value for name, value in ours.state_dict().items()}
    )
    return projector


def tiles(patches: int) -> tuple[Tensor, Tensor]:
    features = 3 * torch.randn(3, patches, 24, generator=torch.Generator().manual_seed(patches))
    is_image = torch.arange(patches)[None] < torch.tensor([[patches], [patches - 1], [2]])
    return features, is_image


@pytest.mark.parametrize(("patches", "queries"), PATCH_QUERIES)
@pytest.mark.parametrize("padded", [False, True])
def test_equals_transformers(
    ours: AriaProjector, theirs: TheirProjector, patches: int, queries: int, padded: bool
) -> None:
    features, is_image = tiles(patches)
    mask = is_image if padded else None
    tokens = ours(features, mask)
    assert tokens.shape == (3, queries, 32)
    expected = theirs(features, None if mask is None else ~mask)
    assert expected.abs().max() > 1
    torch.testing.assert_close(tokens, expected, rtol=0, atol=SAME)


def test_padding_is_never_read(ours: AriaProjector) -> None:
    features, is_image = tiles(16)
    changed = torch.where(is_image[..., None], features, torch.full_like(features, 7.0))
    torch.testing.assert_close(ours(changed, is_image), ours(features, is_image), rtol=0, atol=1e-6)
    assert (ours(changed) - ours(features)).abs().max() > 1e-2


@pytest.mark.parametrize("fewer", range(1, 7))
def test_fewer_queries_give_the_prefix(ours: AriaProjector, fewer: int) -> None:
    features, is_image = tiles(16)
    whole = ours(features, is_image)
    ours.patch_queries[16] = fewer
    torch.testing.assert_close(ours(features, is_image), whole[:, :fewer], rtol=1e-5, atol=1e-6)


def test_gradients_reach_every_parameter(ours: AriaProjector) -> None:
    ours(*tiles(16)).square().sum().backward()
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        assert name != "query" or (parameter.grad.abs().sum(1) > 0).all()


def test_other_tiles_are_refused(ours: AriaProjector) -> None:
    with pytest.raises(
        ValueError,
        match=r"reads tiles of 4, 16 patches, but got 9: "
        r".*max_image_size",
    ):
        ours(torch.randn(1, 9, 24))


def test_configuration_is_checked() -> None:
    with pytest.raises(ValueError, match=r"connector resampler has no patch_queries; its settings"):
        connector_config({"kind": "resampler", "num_queries": 6, "patch_queries": [[4, 6]]})
    with pytest.raises(
        ValueError, match=r"connector aria_projector needs num_heads, patch_queries"
    ):
        connector_config({"kind": "aria_projector", "num_queries": 6})
    numbers = {"kind": "aria_projector", "num_queries": 64, "num_heads": 4}
    for pairs in ([[4, 6]], []):
        with pytest.raises(ValueError, match="largest number of queries is num_queries; .* 64"):
            connector_config(numbers | {"patch_queries": pairs})
    connector = {
        "kind": "aria_projector",
        "num_queries": 6,
        "num_heads": 7,
        "patch_queries": PATCH_QUERIES,
    }
    with pytest.raises(
        ValueError, match="num_heads 7 does not divide the vision encoder's width 24"
    ):
        make_model(connector=connector, nesting={"kind": "query_prefix"})
