"""Liger's Triton kernels in the decoder (https://github.com/linkedin/Liger-Kernel,
https://arxiv.org/abs/2410.10989).

Trainer's `use_liger_kernel` goes by the type of the whole model, `m3`, which Liger does not know:
it would apply nothing. Its documented functions (`apply_liger_kernel_to_llama(model=...)` and its
kin) take an instance, also one without a head. So the composed decoder is given to the one of its
own type: rotary embedding, norms and dense MLPs. The loss stays ours (m3/model/modeling.py),
experts stay those of `hardware.experts_implementation`, the tower and the connector as they are.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from m3.model import M3Config, M3ForConditionalGeneration
from m3.optional import require


@dataclass(frozen=True)
class Row:
    """One of Liger's functions, and the kernels beside rotary embedding and norms: of a dense
    MLP, by the name of its switch.
    """

    function: str
    switches: Mapping[str, bool]


SWIGLU, GEGLU, NO_MLP = {"swiglu": True}, {"geglu": True}, {"swiglu": False}
DECODERS: Mapping[str, Row] = {
    "llama": Row("apply_liger_kernel_to_llama", SWIGLU),
    "mistral": Row("apply_liger_kernel_to_mistral", SWIGLU),
    "qwen2": Row("apply_liger_kernel_to_qwen2", SWIGLU),
    "qwen3": Row("apply_liger_kernel_to_qwen3", SWIGLU),
    "gemma2": Row("apply_liger_kernel_to_gemma2", GEGLU),
    "gemma3_text": Row("apply_liger_kernel_to_gemma3_text", GEGLU),
    "phi3": Row("apply_liger_kernel_to_phi3", SWIGLU),
    "qwen3_moe": Row("apply_liger_kernel_to_qwen3_moe", NO_MLP),
    "mixtral": Row("apply_liger_kernel_to_mixtral", NO_MLP),
}
"""Type of the decoder -> what is called on it. Liger has none for `aria_text`."""


def check_liger(config: M3Config) -> None:
    """Check that the decoder can have Liger's kernels here.

    Raises:
        ValueError: Liger has none for it, or there is no device for them.
        ModuleNotFoundError: liger-kernel is not installed.
    """
    decoder_type = config.text_config.model_type
    if decoder_type not in DECODERS:
        raise ValueError(
            f"hardware.liger: no kernels are known for a decoder of type {decoder_type}, but for "
            f"{', '.join(DECODERS)}; set it to false"
        )
    require("liger-kernel")
    if not torch.cuda.is_available():
        raise ValueError(
            "hardware.liger: its kernels need a GPU (CUDA or ROCm), and torch sees "
            "none; set it to false"
        )


def apply_liger(model: M3ForConditionalGeneration) -> None:
    """Puts the kernels into the decoder of `model`.

    Its rotary embedding goes into transformers' module of that type.
    """
    liger_row = DECODERS[model.config.text_config.model_type]
    function = getattr(importlib.import_module("liger_kernel.transformers"), liger_row.function)
    function(
        rope=True,
        rms_norm=True,
        cross_entropy=False,
        fused_linear_cross_entropy=False,
        **liger_row.switches,
        model=model.model.language_model,
    )
