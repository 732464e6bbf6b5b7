"""Quantisation of the decoder's weights: a table of the quantisers that transformers supports.

In: a checkpoint's configuration, a row of the table, the number format and device to load onto.
Out: the configuration for `from_pretrained`, and a function to run after it.

The decoder's linear layers are quantised: attention, dense and shared-expert layers. The vision
tower, the connector, the routers and `lm_head` keep their precision: they are few of the weights,
and an error there affects every token. Routed experts are no linear layers but one parameter
`[experts, ...]` per projection, which no quantiser of transformers handles. bitsandbytes can store
such a parameter in 4 bits and unpack it when it is read, so `bnb-4bit` quantises the experts too
(after loading, so that all must fit on the device unquantised); the other rows do not.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import BitsAndBytesConfig, TorchAoConfig

from m3.config import near_match
from m3.model import M3Config, M3ForConditionalGeneration
from m3.model.anatomy import fused_experts, router_modules
from m3.optional import require

QuantiserConfig = BitsAndBytesConfig | TorchAoConfig


@dataclass(frozen=True)
class Quantisation:
    """A row of the table.

    `config(skipped modules, number format, device)` is for `from_pretrained`; `after_loading` runs
    on the loaded model; `dtype` is the default number format of unquantised weights (None: as
    saved).
    """

    package: str
    help: str
    config: Callable[[Sequence[str], torch.dtype, torch.device], QuantiserConfig]
    after_loading: Callable[[M3ForConditionalGeneration], None] | None = None
    dtype: torch.dtype | None = None


def _bnb_4bit(
    skipped: Sequence[str], compute_dtype: torch.dtype, device: torch.device
) -> QuantiserConfig:
    """NF4 with double quantisation (QLoRA, https://arxiv.org/abs/2305.14314)."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=list(skipped),
    )


def _bnb_8bit(
    skipped: Sequence[str], compute_dtype: torch.dtype, device: torch.device
) -> QuantiserConfig:
    """LLM.int8() (https://arxiv.org/abs/2208.07339)."""
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(skipped))


def _torchao_int8(
    skipped: Sequence[str], compute_dtype: torch.dtype, device: torch.device
) -> QuantiserConfig:
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=list(skipped))


def _torchao_int4(
    skipped: Sequence[str], compute_dtype: torch.dtype, device: torch.device
) -> QuantiserConfig:
    """Groups of 32 weights; the packing of four-bit numbers follows the device's kernels."""
    if device.type == "cpu":
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

        return TorchAoConfig(
            PrototypeInt4WeightOnlyConfig(group_size=32), modules_to_not_convert=list(skipped)
        )
    from torchao.quantization import Int4WeightOnlyConfig

    packing_format = "tile_packed_to_4d" if device.type == "cuda" else "plain_int32"
    quantiser = Int4WeightOnlyConfig(
        group_size=32,
        int4_packing_format=packing_format,  # pyright: ignore[reportArgumentType]
    )
    return TorchAoConfig(quantiser, modules_to_not_convert=list(skipped))


def quantise_experts(model: M3ForConditionalGeneration) -> None:
    """Pack every parameter `[experts, ...]` of the decoder to NF4; reading one unpacks it."""
    from bitsandbytes.nn.parametrize import replace_parameter_4bit

    for name, module in fused_experts(model.model.language_model).items():
        own_name = name.rpartition(".")[2]
        replace_parameter_4bit(module, own_name, compress_statistics=True, quant_type="nf4")


QUANTISATIONS: Mapping[str, Quantisation] = {
    "bnb-4bit": Quantisation(
        "bitsandbytes", "NF4, routed experts too", _bnb_4bit, after_loading=quantise_experts
    ),
    "bnb-8bit": Quantisation(
        "bitsandbytes",
        "LLM.int8()",
        _bnb_8bit,
        dtype=torch.float16,  # it always computes in this
    ),
    "torchao-int8": Quantisation("torchao", "int8 weights", _torchao_int8),
    "torchao-int4": Quantisation("torchao", "int4 weights", _torchao_int4, dtype=torch.bfloat16),
}


def get_quantisation(name: str) -> Quantisation:
    """Row `name` of the table; a `ModuleNotFoundError` if its packages are not installed."""
    if name not in QUANTISATIONS:
        raise ValueError(f"unknown quantisation {name!r}. {near_match(name, QUANTISATIONS)}")
    for package_name in ("accelerate", QUANTISATIONS[name].package):
        require(package_name)
    return QUANTISATIONS[name]


def unquantised_modules(config: M3Config) -> list[str]:
    """Names of the modules that keep their precision, computed on the meta device."""
    with torch.device("meta"):
        model = M3ForConditionalGeneration(config)
    router_names = [
        f"model.language_model.{name}" for name in router_modules(model.model.language_model)
    ]
    names = ["model.vision_tower", "model.connector", "model.reducer", "lm_head", *router_names]
    return names if config.budget_choice is None else [*names, "model.budget_router"]


def weight_bytes(model: nn.Module) -> int:
    """Bytes of packed parameters and buffers (`get_memory_footprint` counts torchao's unpacked)."""
    return sum(_tensor_bytes(tensor) for tensor in [*model.parameters(), *model.buffers()])


def _tensor_bytes(tensor: Any) -> int:
    if not is_traceable_wrapper_subclass(tensor):
        return tensor.untyped_storage().nbytes()
    names, _ = tensor.__tensor_flatten__()  # pyright: ignore[reportAttributeAccessIssue]
    return sum(_tensor_bytes(getattr(tensor, name)) for name in names)
