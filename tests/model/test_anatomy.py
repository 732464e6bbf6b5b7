"""Layers, routers and experts, read off the module tree."""

import pytest
from tiny_models import DECODERS, MOE, make_model
from torch import nn

from m3.model.anatomy import fused_experts, layer_stack, layer_stacks, router_modules


def test_experts_one_by_one_are_no_layers() -> None:
    layer = nn.ModuleDict({"experts": nn.ModuleList([nn.Identity()] * 8)})
    layers, norms = nn.ModuleList([layer, layer]), nn.ModuleList([nn.Identity()])
    network = nn.ModuleDict({"norms": norms, "layers": layers})
    assert layer_stacks(network) == [norms, layers]
    assert layer_stack(network) is layers


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_layer_of_a_mixture_has_its_router_and_its_experts(decoder: str) -> None:
    language_model = make_model(decoder=decoder).model.language_model
    layers = [f"layers.{number}." for number in range(len(layer_stack(language_model)))]
    owners = layers if decoder in MOE else []
    assert [name[: len("layers.0.")] for name in router_modules(language_model)] == owners
    experts = fused_experts(language_model)
    assert sorted({name[: len("layers.0.")] for name in experts}) == owners
    assert all(
        name.rpartition(".")[2] in dict(experts[name].named_parameters()) for name in experts
    )
