"""Two processes on the CPU, through the launchers: equal to one process, killed and resumed, and
no rank waits for another.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from training_runs import make_new_tokens, weights

from m3.checkpoints.new_embeddings import EMBEDDING, OUTPUT
from m3.model import M3ForConditionalGeneration
from m3.train import main
from m3.training.loop.run_folder import RunFolder

pytest.importorskip("deepspeed")
ROOT = Path(__file__).resolve().parents[2]
WORKER = ROOT / "tests" / "support" / "training_ranks.py"
STEPS = [
    "schedule.batch_size=1",
    "schedule.accumulation=null",
    "schedule.global_batch=2",
    "schedule.steps=8",
]
EVALUATION = (
    f"evaluation={{every: 4, tasks: [m3_tiny_scene], scales: [1, 36], limit: 3, include_path: "
    f"{ROOT}/lmms_eval_tasks}}"
)
ADAPTER = "adapter={rank: 4, targets: [attention, shared_experts, routed_experts]}"


def environment(zero: str = "zero3") -> dict[str, str]:
    with socket.socket() as free:
        free.bind(("", 0))
        port = str(free.getsockname()[1])
    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {
        "GPUS": "2", "ZERO": zero, "MASTER_PORT": port, "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "PATH": binaries,
    }  # fmt: skip


def launch(recipe: Path, *overrides: str) -> list[str]:
    return ["bash", str(ROOT / "scripts" / "finetune.sh"), str(recipe), *overrides]


def finish(command: list[str], zero: str = "zero3") -> None:
    done = subprocess.run(
        command, env=environment(zero), capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in RunFolder(run).read_metrics() if "loss" in row]


def swept(run: Path) -> tuple[list[dict], list[dict], str]:
    """What the sweeps on the way found: their scores, the model they describe, its costs."""
    scores = [row for row in RunFolder(run).read_metrics() if "loss" not in row]
    models = json.loads((run / "evaluation" / "step-8" / "models.json").read_text())
    for model in models:
        del model["path"], model["weights"]
    return scores, models, (run / "evaluation" / "step-8" / "cost.csv").read_text()


def distance(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> float:
    return float(torch.cat([(some[name] - others[name]).flatten() for name in some]).norm())


@pytest.fixture(scope="module")
def base(make_recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe beside a checkpoint to start from, `first`."""
    recipe = make_recipe(tmp_path_factory.mktemp("several"))
    main([str(recipe), "schedule.steps=1", f"run={recipe.parent}/first"])
    return recipe


def overrides(recipe: Path, name: str, *more: str) -> list[str]:
    first = recipe.parent / "first" / "checkpoints" / "final"
    return [
        "new_model=null",
        f"model={first}",
        f"run={recipe.parent}/{name}",
        "schedule.save_every=2",
        *STEPS,
        *more,
    ]


@pytest.mark.slow
def test_zero3_killed_and_resumed_equals_one_process(base: Path) -> None:
    """Measured: losses 2e-7 apart, relative.

    The end is one safetensors file that `from_pretrained` takes.

    The benchmarks on its way are answered by both processes in step, as by the one.
    """
    main([str(base), *overrides(base, "one", EVALUATION)])
    command = launch(base, *overrides(base, "two", EVALUATION))
    run = RunFolder(base.parent / "two")
    process = subprocess.Popen(
        command,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 400
    while len(run.read_metrics()) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert run.newest_checkpoint() and not run.is_finished
    finish(command)
    assert losses(run.path) == pytest.approx(losses(base.parent / "one"), rel=1e-3)
    assert len(losses(run.path)) == 8
    assert swept(run.path) == swept(base.parent / "one")
    assert [row["step"] for row in swept(run.path)[0]] == [4, 8]
    M3ForConditionalGeneration.from_pretrained(run.final)
    before, after = weights(base.parent / "first"), weights(run.path)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    for part in (
        "experts.gate_up_proj",
        "experts.down_proj",
        "router.weight",
        "vision_tower",
        "connector",
    ):
        assert any(part in name for name in moved), part


@pytest.mark.slow
@pytest.mark.parametrize(
    ("zero", "more"), [("zero2", ()), ("zero3", (ADAPTER, "parts.vision_tower=frozen"))]
)
def test_zero2_and_adapters_under_zero3_equal_one_process(
    base: Path, zero: str, more: tuple[str, ...]
) -> None:
    main([str(base), *overrides(base, f"one_{zero}", *more)])
    finish(launch(base, *overrides(base, f"two_{zero}", *more)), zero)
    one, two = base.parent / f"one_{zero}", base.parent / f"two_{zero}"
    assert losses(two) == pytest.approx(losses(one), rel=1e-3)
    before, first, second = weights(base.parent / "first"), weights(one), weights(two)
    assert distance(first, second) < 0.02 * distance(before, first)
    if more:
        assert all(
            torch.equal(before[name], second[name]) for name in before if "vision_tower" in name
        )
        assert (two / "checkpoints" / "adapter" / "adapter_model.safetensors").stat().st_size > 1000
        assert any(
            not torch.equal(before[name], second[name])
            for name in before
            if "experts.gate_up_proj" in name
        )


@pytest.mark.slow
def test_one_rank_of_text_and_one_of_images(base: Path) -> None:
    """Under ZeRO-3 every part runs on every rank: nobody waits, gradients are those of one
    process; what is frozen stays.
    """
    first, data = base.parent / "first" / "checkpoints" / "final", base.parent / "data.json"
    one, two = base.parent / "ranks_one", base.parent / "ranks_two"
    finish([sys.executable, str(WORKER), str(one), str(first), str(data), "2"])
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
    ]
    port = environment()["MASTER_PORT"]
    zero3 = str(ROOT / "scripts" / "deepspeed" / "zero3.json")
    finish([*launcher, port, str(WORKER), str(two), str(first), str(data), "1", zero3])
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    before, after, alone = weights(base.parent / "first"), weights(two), weights(one)
    assert after["model.reducer.queries"].any(), "the learned reducer did not train"
    assert distance(alone, after) < 0.02 * distance(before, alone)
    assert all(torch.equal(before[name], after[name]) for name in before if "vision_tower" in name)
    assert any(not torch.equal(before[name], after[name]) for name in before if "router" in name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("zero", "what"),
    [
        ("zero3", "parts={vision_tower: frozen, connector: 1e-2, decoder: frozen}"),
        ("zero2", "adapter={rank: 8, targets: [attention, mlp]}"),
    ],
)
def test_rows_of_new_tokens_train_in_sharded_tables(zero: str, what: str, tmp_path: Path) -> None:
    recipe = make_new_tokens(tmp_path)
    steps = ["schedule.steps=4", "schedule.global_batch=2", "schedule.save_every=2"]
    finish(launch(recipe, what, *steps), zero)
    before, after = load_file(tmp_path / "model" / "model.safetensors"), weights(tmp_path / "run")
    for name in (EMBEDDING, OUTPUT):
        assert (before[name] != after[name]).any(1).nonzero().flatten().tolist() == [97, 98]


@pytest.mark.slow
def test_every_process_refuses_other_data(tmp_path: Path) -> None:
    """The first one looks; none of them goes on."""
    recipe = make_new_tokens(tmp_path)
    command = launch(recipe, "schedule.steps=4", "schedule.global_batch=2", "schedule.save_every=2")
    around = environment() | {"LAUNCHER": "torchrun"}
    first = subprocess.run(
        command, env=around, capture_output=True, text=True, timeout=200, check=False
    )
    assert first.returncode == 0, first.stderr[-2000:]
    for name in ("final", "checkpoint-4"):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / name)
    Image.new("RGB", (30, 20), (1, 2, 3)).save(tmp_path / "0.png")
    again = subprocess.run(
        command, env=around, capture_output=True, text=True, timeout=200, check=False
    )
    assert again.returncode != 0
    assert again.stderr.count("samples or pictures behind the same names. Put it back") == 2
