"""Liger's kernels: the table, and what is refused.

What is called is looked at where the package is; its kernels need a GPU.
"""

import importlib.util
import inspect
from pathlib import Path

import pytest
import torch
from tiny_models import make_config, make_model
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from m3.training.command import main
from m3.training.setup import liger

HAS_LIGER = importlib.util.find_spec("liger_kernel") is not None


def test_a_decoder_that_liger_does_not_know_is_refused(recipe: Path) -> None:
    with pytest.raises(
        ValueError,
        match="no kernels are known for a decoder of type aria_text, but for llama, .*qwen3_moe",
    ):
        main([str(recipe), "hardware.liger=true"])


@pytest.mark.skipif(HAS_LIGER, reason="liger-kernel is installed")
def test_the_missing_package_is_named() -> None:
    with pytest.raises(
        ModuleNotFoundError,
        match=r"needs the package liger-kernel, .*pip install "
        r"-e '.\[liger\]'",
    ):
        liger.check_liger(make_config(decoder="llama"))


@pytest.mark.skipif(
    not HAS_LIGER or torch.cuda.is_available(), reason="for a CPU that has liger-kernel"
)
def test_without_a_gpu_it_is_refused() -> None:
    with pytest.raises(ValueError, match="its kernels need a GPU"):
        liger.check_liger(make_config(decoder="llama"))


def test_every_row_is_a_decoder_of_transformers() -> None:
    assert len(liger.DECODERS) == 9
    assert set(liger.DECODERS) <= set(CONFIG_MAPPING)


@pytest.mark.parametrize("kind", liger.DECODERS)
def test_every_row_is_a_function_of_liger_with_these_switches(kind: str) -> None:
    functions = pytest.importorskip("liger_kernel.transformers")
    row = liger.DECODERS[kind]
    wanted = {
        "rope",
        "rms_norm",
        "cross_entropy",
        "fused_linear_cross_entropy",
        "model",
        *row.switches,
    }
    assert set(inspect.signature(getattr(functions, row.function)).parameters) == wanted


@pytest.mark.parametrize("decoder", ["llama", "qwen3", "qwen3_moe", "mixtral"])
def test_norms_and_dense_mlps_of_the_decoder_are_liger_s(decoder: str) -> None:
    pytest.importorskip("liger_kernel")
    model = make_model(decoder=decoder)
    before = str(model.model.vision_tower)
    liger.apply_liger(model)
    layer = model.model.language_model.layers[0]
    assert "LigerRMSNorm" in str(layer.input_layernorm)
    assert ("LigerSwiGLUMLP" in str(layer.mlp)) == (decoder in ("llama", "qwen3"))
    assert "Liger" not in str(model.lm_head) + str(model.model.vision_tower)
    assert str(model.model.vision_tower) == before
