"""Choice of the attention that keeps packed sequences of a decoder apart, found by trying it on a
small copy.

in:  a decoder's configuration; out: the name of an attention implementation, or why sequences
    cannot share rows.

The copy has as few layers as show all kinds of attention, few words, narrow feed-forward layers,
short windows and large weights. Two sequences are read by themselves, with the attention that
transformers would choose, and in one row. Recurrent states, positions that count places, layers
that get no keywords: whatever carries something of the first sequence into the second changes its
states.
"""

import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel
from transformers.utils.import_utils import is_flash_attn_2_available, is_flash_attn_3_available

from m3.hardware import choose_device
from m3.model.packed_attention import PACKED_ATTENTION, takes_sequences
from m3.model.packed_sequences import PackedSequences

LENGTHS = (9, 13)
"""Lengths of the two sequences; longer than `WINDOW`, so that windows and chunks are tried too."""
WINDOW = 4
WIDTH = 64
"""Words, and the width of feed-forward layers."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest relative difference of equal ways (measured: 5e-7 in float32, 1e-5 of Gemma 3n); a
leak is of the order of 1.
"""
EXTRAS = {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": WIDTH}
"""Options of Gemma 3n and Gemma 4: how many of the last layers take the keys of earlier ones,
and a table of each layer.
"""
FOREIGN_ERRORS = (
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    NotImplementedError,
    RuntimeError,
    ImportError,
)
"""Errors of decoders that do not take an attention, or packed sequences."""


@dataclass(frozen=True)
class PackedAttention:
    """The attention that packed rows of a decoder are computed with; None where none keeps its
    sequences apart.

    refused: attention -> why it was not taken.
    """

    implementation: str | None
    refused: dict[str, str]


def choose_packed_attention(config: PretrainedConfig, is_half: bool = False) -> PackedAttention:
    """The first of: flash attention (half precision, where installed), packed attention,
    transformers' own with dense masks.
    """
    trial = try_packing(config)
    if isinstance(trial, str):
        return PackedAttention(None, {"a trial": trial})
    candidates = [
        *(_flash_attentions(trial.decoder) if is_half else ()),
        PACKED_ATTENTION,
        trial.native,
    ]
    refused: dict[str, str] = {}
    for implementation in candidates:
        reason = trial.refusal(implementation)
        if reason is None:
            return PackedAttention(implementation, refused)
        refused[implementation] = reason
    return PackedAttention(None, refused)


def packing_refusal(config: PretrainedConfig, implementation: str) -> str | None:
    """Why packed rows of this decoder cannot be computed with an attention; None where they can."""
    trial = try_packing(config)
    return trial if isinstance(trial, str) else trial.refusal(implementation)


def try_packing(config: PretrainedConfig) -> "PackingTrial | str":
    """A trial, or why there is none: of some decoders no small copy can be made, or it does not
    run.
    """
    try:
        return PackingTrial(config)
    except FOREIGN_ERRORS as error:
        return f"no small copy of the decoder runs ({_first_line(error)})"


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


class PackingTrial:
    """A small decoder of one kind, and the states of two sequences that it read one after the
    other.
    """

    def __init__(self, config: PretrainedConfig) -> None:
        self.decoder = _draw(config)
        native = self.decoder.config._attn_implementation
        assert native is not None  # transformers chooses one for every decoder
        self.native: str = native
        weight = next(self.decoder.get_input_embeddings().parameters())
        generator = torch.Generator().manual_seed(0)
        self.embeds = torch.randn(1, sum(LENGTHS), weight.shape[-1], generator=generator).to(
            weight.device
        )
        alone = [self._states(part) for part in self.embeds.split(LENGTHS, dim=1)]
        self.alone: Float[Tensor, "1 l d"] = torch.cat(alone, dim=1)

    def refusal(self, implementation: str) -> str | None:
        """Why packed rows cannot be computed with this attention; None where they can."""
        dtype = torch.bfloat16 if implementation.startswith("flash_attention") else torch.float32
        try:
            self.decoder.set_attn_implementation(implementation)
            if self.decoder.config._attn_implementation != implementation:  # some only warn
                return "the decoder has an attention of its own"
            leak = self.leak(implementation, dtype)
        except FOREIGN_ERRORS as error:
            return f"the decoder does not take it ({_first_line(error)})"
        finally:
            self.decoder.set_attn_implementation(self.native)
        if leak < TOLERANCE[dtype]:
            return None
        return f"a sequence changes by {leak:.0e} of its states when it shares a row with another"

    def leak(self, implementation: str, dtype: torch.dtype) -> float:
        """Largest relative difference between the states of both sequences in one row and of
        each by itself.
        """
        device = self.embeds.device
        positions = torch.cat([torch.arange(length) for length in LENGTHS])[None].to(device)
        options: dict[str, Any] = {}
        if takes_sequences(implementation):
            lengths = torch.tensor([LENGTHS], device=device)
            options = PackedSequences.from_lengths(lengths, sum(LENGTHS)).decoder_arguments()
        module = cast(nn.Module, self.decoder)  # transformers' `to` has no types
        module.to(dtype)
        together = self._states(self.embeds.to(dtype), position_ids=positions, **options)
        module.to(torch.float32)
        return float((together - self.alone).abs().max() / self.alone.abs().max())

    @torch.no_grad()
    def _states(self, embeds: Float[Tensor, "1 l d"], **options: Any) -> Float[Tensor, "1 l d"]:
        return self.decoder(
            inputs_embeds=embeds, use_cache=False, **options
        ).last_hidden_state.float()


def _draw(config: PretrainedConfig) -> PreTrainedModel:
    """A small decoder of this kind, on the accelerator if there is one; the state of random
    numbers stays as it was.
    """
    small = copy.deepcopy(config)
    for name, value in _small_options(small).items():
        setattr(small, name, value)
    device = choose_device()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        decoder = AutoModel.from_config(small, dtype=torch.float32).eval()
        with torch.no_grad():
            for parameter in decoder.parameters():
                if parameter.dim() > 1:  # as drawn, small weights make a small leak
                    parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return decoder.to(device)


def _small_options(config: PretrainedConfig) -> dict[str, Any]:
    """Layers up to the first of every kind, few words, narrow feed-forward layers, windows
    shorter than the sequences.
    """
    options = config.to_dict()
    patterns = {
        name: options[name] for name in ("layer_types", "layers_block_type") if options.get(name)
    }
    layers = max(
        (pattern.index(kind) + 1 for pattern in patterns.values() for kind in pattern), default=1
    )
    sizes = {"sliding_window": WINDOW, "attention_chunk_size": WINDOW}
    widths = (
        "intermediate_size",
        "moe_intermediate_size",
        "shared_expert_intermediate_size",
        "ffn_dim",
        "n_inner",
    )
    sizes |= dict.fromkeys(widths, WIDTH)
    return {
        "num_hidden_layers": min(layers, config.num_hidden_layers),
        "vocab_size": WIDTH,
        "pad_token_id": 0,
        **{name: size for name, size in EXTRAS.items() if isinstance(options.get(name), int)},
        **{name: pattern[:layers] for name, pattern in patterns.items()},
        **{
            name: min(size, options[name])
            for name, size in sizes.items()
            if isinstance(options.get(name), int)
        },
    }


def _flash_attentions(decoder: PreTrainedModel) -> list[str]:
    """Flash attention that is installed, for a CUDA device that it supports (compute capability
    8.0 and newer).
    """
    if not (
        decoder._supports_flash_attn
        and torch.cuda.is_available()
        and torch.cuda.get_device_capability() >= (8, 0)
    ):
        return []
    installed = {
        "flash_attention_3": is_flash_attn_3_available(),
        "flash_attention_2": is_flash_attn_2_available(),
    }
    return [name for name, is_installed in installed.items() if is_installed]
