"""Anatomy of any encoder or decoder of transformers: its layers, routers and experts, read off the
module tree.
"""

from typing import cast

from torch import Tensor, nn
from transformers import PreTrainedModel


def layer_stacks(network: nn.Module) -> list[nn.ModuleList]:
    """Lists of modules that lie in no other list: experts one by one belong to their layer."""
    stacks = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    nested = {id(inner) for outer in stacks for inner in outer.modules() if inner is not outer}
    return [stack for stack in stacks if id(stack) not in nested]


def layer_stack(network: nn.Module) -> nn.ModuleList:
    """The layers of an encoder or a decoder: the longest of its stacks."""
    return max(layer_stacks(network), key=len)


def router_modules(decoder: nn.Module) -> dict[str, nn.Module]:
    """Name -> router, layer by layer; none of a dense decoder."""
    recorder = (cast(PreTrainedModel, decoder)._can_record_outputs or {}).get("router_logits")
    return {
        name: module
        for name, module in decoder.named_modules()
        if recorder is not None and isinstance(module, recorder.target_class)
    }


def holds_experts(parameter: Tensor) -> bool:
    """Tell whether a parameter holds all experts of a layer: `[experts, d, e]`."""
    return parameter.ndim == 3


def fused_experts(decoder: nn.Module) -> dict[str, nn.Module]:
    """Name of every parameter that holds all experts of a layer -> the module it belongs to."""
    return {
        f"{module_name}.{name}": module
        for module_name, module in decoder.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if holds_experts(parameter)
    }
