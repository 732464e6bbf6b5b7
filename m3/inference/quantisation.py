"""Fewer bits for the decoder's weights: one table of ways, all through the quantisers that
transformers knows.

In: a checkpoint's configuration, a row of the table, the number format and device to load onto.
Out: the configuration that `from_pretrained` takes, and what is done after it.

Quantised are the decoder's linear layers: attention, dense and shared-expert layers. The vision
tower, the connector, the routers and `lm_head` keep their precision: they are a small part of the
weights, and an error there is an error in every token. Routed experts are no linear layers but one
parameter `[experts, ...]` per projection, which no quantiser of transformers touches. bitsandbytes
can keep such a parameter in 4 bits and unpack it when it is read, so `bnb-4bit` quantises the
experts too (after loading, so the whole of them must fit on the device once); the other ways leave
them.
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
from m3.optional import require

QuantiserConfig = BitsAndBytesConfig | TorchAoConfig


@dataclass(frozen=True)
class Quantisation:
    """A row of the table.

    `config(skipped modules, number format, device)` is for `from_pretrained`; `after` runs on the
    loaded model; `dtype` is the number format of all that is not quantised where the user names
    none (None: as saved).
    """

    package: str
    help: str
    config: Callable[[Sequence[str], torch.dtype, torch.device], QuantiserConfig]
    after: Callable[[M3ForConditionalGeneration], None] | None = None
    dtype: torch.dtype | None = None


def _bnb_4bit(skipped: Sequence[str], dtype: torch.dtype, device: torch.device) -> QuantiserConfig:
    """NF4 with double quantisation (QLoRA, https://arxiv.org/abs/2305.14314)."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(skipped),
    )


def _bnb_8bit(skipped: Sequence[str], dtype: torch.dtype, device: torch.device) -> QuantiserConfig:
    """LLM.int8() (https://arxiv.org/abs/2208.07339)."""
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(skipped))


def _torchao_int8(
    skipped: Sequence[str], dtype: torch.dtype, device: torch.device
) -> QuantiserConfig:
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=list(skipped))


def _torchao_int4(
    skipped: Sequence[str], dtype: torch.dtype, device: torch.device
) -> QuantiserConfig:
    """Groups of 32 weights.

    How four-bit numbers are packed differs between devices, as their kernels do.
    """
    if device.type == "cpu":
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

        return TorchAoConfig(
            PrototypeInt4WeightOnlyConfig(group_size=32), modules_to_not_convert=list(skipped)
        )
    from torchao.quantization import Int4WeightOnlyConfig

    packing = "tile_packed_to_4d" if device.type == "cuda" else "plain_int32"
    quantiser = Int4WeightOnlyConfig(group_size=32, int4_packing_format=packing)  # pyright: ignore[reportArgumentType]
    return TorchAoConfig(quantiser, modules_to_not_convert=list(skipped))


def quantise_experts(model: M3ForConditionalGeneration) -> None:
    """Packs every parameter `[experts, ...]` of the decoder to NF4; it is unpacked whenever it
    is read.
    """
    from bitsandbytes.nn.parametrize import replace_parameter_4bit

    for module, name in fused_experts(model):
        replace_parameter_4bit(module, name, compress_statistics=True, quant_type="nf4")


QUANTISATIONS: Mapping[str, Quantisation] = {
    "bnb-4bit": Quantisation(
        "bitsandbytes", "NF4, routed experts too", _bnb_4bit, after=quantise_experts
    ),
    "bnb-8bit": Quantisation(
        "bitsandbytes",
        "LLM.int8()",
        _bnb_8bit,
        dtype=torch.float16,  # it computes in this, whatever it is given
    ),
    "torchao-int8": Quantisation("torchao", "int8 weights", _torchao_int8),
    "torchao-int4": Quantisation("torchao", "int4 weights", _torchao_int4, dtype=torch.bfloat16),
}


def get_quantisation(name: str) -> Quantisation:
    """The row called `name`, its packages being there.

    Raises:
        ValueError: no such row.
        ModuleNotFoundError: a package is missing; the text says what to install.
    """
    if name not in QUANTISATIONS:
        raise ValueError(f"unknown quantisation {name!r}. {near_match(name, QUANTISATIONS)}")
    for package in ("accelerate", QUANTISATIONS[name].package):
        require(package)
    return QUANTISATIONS[name]


def kept_modules(config: M3Config) -> list[str]:
    """Names of the modules that keep their precision.

    Computed on the meta device: no weight is allocated.
    """
    with torch.device("meta"):
        model = M3ForConditionalGeneration(config)
    recorder = (model.model.language_model._can_record_outputs or {}).get("router_logits")
    routers = (
        []
        if recorder is None
        else [n for n, m in model.named_modules() if isinstance(m, recorder.target_class)]
    )
    return ["model.vision_tower", "model.connector", "model.reducer", "lm_head", *routers]


def fused_experts(model: M3ForConditionalGeneration) -> list[tuple[nn.Module, str]]:
    """Every parameter that holds all experts of a layer, as its module and its name there."""
    return [
        (module, name)
        for module in model.model.language_model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3
    ]


def weight_bytes(model: nn.Module) -> int:
    """What the parameters and buffers take, packed as they are (`get_memory_footprint` takes
    torchao's for unpacked).
    """
    return sum(_stored(tensor) for tensor in [*model.parameters(), *model.buffers()])


def _stored(tensor: Any) -> int:
    if not is_traceable_wrapper_subclass(tensor):
        return tensor.untyped_storage().nbytes()
    names, _ = tensor.__tensor_flatten__()  # pyright: ignore[reportAttributeAccessIssue]  # what makes it one
    return sum(_stored(getattr(tensor, name)) for name in names)
