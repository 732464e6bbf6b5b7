"""On a CUDA device packed rows run through torch's variable-length flash attention, and give
what float32 gives on the CPU.
"""

import json
import math
import subprocess
import sys
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from tiny_models import DECODERS, make_config
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.masking_utils import sliding_window_causal_mask_function

from m3.bench import step
from m3.bench.shapes import suite_samples
from m3.data.synthetic.suite import generate
from m3.inference.loading import load
from m3.inference.question import ask
from m3.model import packed_attention
from m3.model.packed_attention import PACKED_ATTENTION
from m3.model.packed_sequences import PackedSequences
from m3.model.packing_check import choose_packed_attention

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
LENGTHS = (300, 17, 1, 129, 65)


def attend_alone(query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
    """SDPA of each sequence by itself, in float32, on the device of its inputs; `[1, l, h, d]`."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    outputs = []
    for end, length in zip(accumulate(LENGTHS), LENGTHS, strict=True):
        q, k, v = (states[:, :, end - length : end].float() for states in (query, key, value))
        places = torch.arange(length, device=query.device)
        back = places[:, None] - places
        mask = (back >= 0) & (back < (window or length))
        outputs.append(scaled_dot_product_attention(q, k, v, mask))
    return torch.cat(outputs, 2).transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(8, 8, 64), (8, 2, 128), (4, 1, 80)])
@pytest.mark.parametrize("window", [None, 33])
@pytest.mark.parametrize("is_autocast", [False, True])
def test_the_kernel_computes_sequences_alone(
    dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    width: int,
    window: int | None,
    is_autocast: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []
    kernel = packed_attention._all_at_once
    monkeypatch.setattr(
        packed_attention, "_all_at_once", lambda *given: calls.append(1) or kernel(*given)
    )
    torch.manual_seed(0)
    shapes = [(1, count, sum(LENGTHS), width) for count in (heads, kv_heads, kv_heads)]
    exact = [
        torch.randn(shape, device="cuda").to(dtype).float().requires_grad_() for shape in shapes
    ]
    states = [
        tensor.detach().to(torch.float32 if is_autocast else dtype).requires_grad_()
        for tensor in exact
    ]
    packed = PackedSequences.from_lengths(torch.tensor([LENGTHS], device="cuda"), sum(LENGTHS))
    rule = None
    if window is not None:
        rule = packed_attention.packed_mask(
            1, sum(LENGTHS), sum(LENGTHS), mask_function=sliding_window_causal_mask_function(window),
            local_size=window, allow_is_causal_skip=False, device=torch.device("cuda"),
        )  # fmt: skip
    with torch.autocast("cuda", dtype, enabled=is_autocast):
        output, _ = packed_attention.packed_attention(
            torch.nn.Module(), *states, rule, width**-0.5, packed=packed, sliding_window=window
        )
    assert calls
    assert output.dtype == dtype
    expected = attend_alone(*exact, window)
    direction = torch.randn_like(expected)
    (output.float() * direction).sum().backward()
    (expected * direction).sum().backward()
    bound = 1e-2 if dtype == torch.bfloat16 else 2e-3
    assert step.relative_difference(output, expected) < bound
    for ours, exactly in zip(states, exact, strict=True):
        assert step.relative_difference(ours.grad, exactly.grad) < bound


@pytest.mark.parametrize("kind", DECODERS)
def test_the_trial_on_the_device_takes_packed_attention(kind: str) -> None:
    config = make_config(decoder=kind).text_config
    assert choose_packed_attention(config, is_half=True).implementation in (
        PACKED_ATTENTION,
        "flash_attention_2",
        "flash_attention_3",
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_packed_step_on_the_device_is_the_published_loop(dtype: str) -> None:
    setting = step.StepSetting(
        "real", None, (1, 9, 36, 144, 576), 2, 1, (1500,), "trained", 1, "cuda", dtype
    )
    bench = step.StepBench(setting)
    bound = step.TOLERANCE[dtype]
    assert step.relative_difference(bench.gradient("1500"), bench.gradient("published")) < bound


SHIPPED = "playground/m3-tiny"


def test_answers_of_the_device_are_those_of_the_cpu() -> None:
    models = [load(SHIPPED, device=device, dtype="float32") for device in ("cuda", "cpu")]
    for sample in suite_samples(6, 1):
        question = sample.turns[0].text.replace("<image>", "").strip()
        for scale in (1, 36, 144):
            there, here = (
                ask(model, question, images=list(sample.images), matryoshka_vis_token_scale=scale)
                for model in models
            )
            assert there == here


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [[], ["hardware.compile=true"], ["memory=low"], ["adapter.rank=4", "adapter.alpha=8"]],
)
def test_a_run_trains_on_the_device(options: list[str], tmp_path: Path) -> None:
    generate("train", 24, 0, tmp_path / "data", progress=False)
    given = [
        f"run={tmp_path}/run",
        "model=playground/m3-tiny-base",
        f"data.sources.0.path={tmp_path}/data/train",
    ]
    given += [
        "schedule.steps=4",
        "schedule.log_every=1",
        "hardware.precision=bfloat16",
        "data.workers=0",
        *options,
    ]
    done = subprocess.run(
        [sys.executable, "-m", "m3.cli", "train", "m3/recipes/tiny_quickstart.yaml", *given],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "packed, each sequence by itself" in done.stdout + done.stderr
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]
    assert len(losses) == 4
    assert all(math.isfinite(loss) for loss in losses)
