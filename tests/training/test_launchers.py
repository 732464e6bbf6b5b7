"""What stands between a user and `m3 train`: every launcher, accelerate's files, Slurm's.

Nothing is trained here.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env

import m3.training
from m3.training.command import main

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
DEFAULTS = {
    "finetune": "llava_1_5_7b_m3",
    "finetune_lora": "llava_1_5_7b_m3_lora",
    "finetune_task": "llava_1_5_7b_m3_task",
    "pretrain_align": "align",
    "pretrain_interleaved": "pretrain_interleaved",
    "sft": "sft",
}
ACCELERATE = {"fsdp2": "FSDP", "multi_gpu": "MULTI_GPU", "npu": "MULTI_NPU"}
RECIPES = sorted((Path(m3.training.__file__).parents[1] / "recipes").glob("*.yaml"))
RECORDER = '#!/bin/sh\nfor one in "$@"; do printf "%s\\n" "$one"; done >>"$RECORD"\n'


VISION = (
    "{model_type: siglip_vision_model, hidden_size: 160, intermediate_size: 480, "
    "num_hidden_layers: 4, "
    "num_attention_heads: 5, image_size: 96, patch_size: 8, vision_use_head: false}"
)
SRUN = (
    RECORDER
    + """trap 'echo stopped >>"$RECORD"; kill $!; exit 143' TERM
sleep 0.3; touch "$RECORD.begun"; sleep 100 & wait
"""
)


def record(folder: Path, *names: str, body: str = RECORDER) -> dict[str, str]:
    """An environment in which the programs `names` only write their arguments, a line each, into
    `folder/arguments`.
    """
    for name in names:
        (folder / name).write_text(body)
        (folder / name).chmod(0o755)
    path = f"{folder}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "RECORD": str(folder / "arguments"), "GPUS": "8"}


def test_every_launcher_is_known() -> None:
    sourcing = {path.stem for path in SCRIPTS.glob("*.sh") if "\nlaunch " in path.read_text()}
    assert sourcing == set(DEFAULTS)


@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun", "accelerate"])
@pytest.mark.parametrize(("script", "recipe"), DEFAULTS.items())
def test_a_launcher_starts_a_run_that_can_be_planned(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    script: str,
    recipe: str,
    launcher: str,
) -> None:
    environment = record(tmp_path, launcher) | {"LAUNCHER": launcher}
    more = ["--dry-run", "schedule.seed=3"]
    subprocess.run(
        ["bash", str(SCRIPTS / f"{script}.sh"), recipe, *more],
        env=environment,
        cwd=tmp_path,
        check=True,
    )
    given = (tmp_path / "arguments").read_text().splitlines()
    assert "8" in given[: given.index("m3.cli")]
    arguments = given[given.index("m3.cli") + 1 :]
    zero = "zero2" if script == "pretrain_align" else "zero3"
    config = (
        [f"hardware.deepspeed={SCRIPTS}/deepspeed/{zero}.json"] if launcher == "deepspeed" else []
    )
    assert arguments == ["train", recipe, *config, *more]
    monkeypatch.chdir(ROOT)
    assert main([*arguments[1:], "--devices", "8"]) == 0
    assert "= 8 devices x" in capsys.readouterr().out


def test_a_launcher_runs_where_one_stands_with_this_clones_code(tmp_path: Path) -> None:
    """A recipe of one's own, and all that it names, are found from one's own folder."""
    body = '#!/bin/sh\necho "$PWD" >"$RECORD"; echo "$PYTHONPATH" >>"$RECORD"\n'
    environment = record(tmp_path, "torchrun", body=body) | {"LAUNCHER": "torchrun"}
    command = ["bash", str(SCRIPTS / "finetune.sh"), "my.yaml"]
    subprocess.run(command, env=environment, cwd=tmp_path, check=True)
    folder, path = (tmp_path / "arguments").read_text().splitlines()
    assert Path(folder) == tmp_path and path.split(os.pathsep)[0] == str(ROOT)


@pytest.mark.parametrize(("script", "recipe"), DEFAULTS.items())
def test_without_a_recipe_a_launcher_takes_its_own(
    tmp_path: Path, script: str, recipe: str
) -> None:
    """A word with `=` is an override and one with `-` an option, never the recipe."""
    environment = record(tmp_path, "torchrun") | {"LAUNCHER": "torchrun"}
    for more in ([], ["schedule.steps=3", "run=a=b"], ["--dry-run"]):
        subprocess.run(
            ["bash", str(SCRIPTS / f"{script}.sh"), *more],
            env=environment,
            cwd=tmp_path,
            check=True,
        )
        given = (tmp_path / "arguments").read_text().splitlines()
        assert given[given.index("m3.cli") + 1 :] == ["train", recipe, *more]
        (tmp_path / "arguments").unlink()


@pytest.mark.parametrize("first", [[], ["run=here"]])
def test_slurm_needs_a_recipe(tmp_path: Path, first: list[str]) -> None:
    script = str(SCRIPTS / "slurm" / "train.sbatch")
    done = subprocess.run(
        ["bash", script, *first], env=record(tmp_path), capture_output=True, text=True, check=False
    )
    got = "".join(first)
    assert (done.returncode, done.stderr) == (
        2, f"expected a recipe first, got '{got}': train.sbatch RECIPE [key=value ...]\n"
    )  # fmt: skip


def test_an_unknown_launcher_is_refused(tmp_path: Path) -> None:
    environment = record(tmp_path) | {"LAUNCHER": "mpirun"}
    done = subprocess.run(
        ["bash", str(SCRIPTS / "sft.sh")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (
        2,
        "LAUNCHER is mpirun; expected deepspeed, torchrun or accelerate\n",
    )


def test_overrides_may_stand_behind_options(capsys: pytest.CaptureFixture[str]) -> None:
    scales = ["--matryoshka_vis_token_scale", "1,9"]
    main(
        [
            "llava_1_5_7b_m3",
            "run=one",
            *scales,
            "schedule.batch_size=2",
            "--dry-run",
            "schedule.global_batch=32",
        ]
    )
    printed = capsys.readouterr().out
    assert "run             one\n" in printed
    assert "global batch    32 samples = 1 devices x 2 x 16 micro-steps" in printed
    assert "per sample      2 sequences" in printed


@pytest.mark.slow
def test_every_shipped_recipe_can_be_planned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No weight is read.

    What `m3 data tiny` and earlier tiny runs leave is not here: such recipes start from the tiny
    base.
    """
    assert len(RECIPES) == 22
    monkeypatch.chdir(ROOT)
    base = ROOT / "playground" / "m3-tiny-base"
    more = {
        "tiny_align": [
            f"new_model.tokenizer={base}",
            "new_model.vision_tower=null",
            f"new_model.config.vision_config={VISION}",
        ],
        "tiny_base": [f"model={base}"],
        "tiny_corners": [f"model={base}"],
        "tiny_places": [f"model={base}"],
        "tiny_ladder": [f"model={base}"],
    }
    planned = 0
    for path in RECIPES:
        if path.stem in ("tiny_tower", "tiny_resolutions", "tiny_router"):
            with pytest.raises(ValueError, match="those of a tower, .* have no plan"):
                main([path.stem, "--dry-run"])
            continue
        assert main([path.stem, "--dry-run", "--devices", "8", *more.get(path.stem, [])]) == 0, path
        printed = capsys.readouterr().out
        planned += printed.count("global batch")
        assert printed.count(" 8 devices x ") == printed.count("run   ") > 0
    assert planned == 15 + 2 * 3 + 2 + 4, (
        "two of the nineteen have three stages, one has two, one four"
    )


@pytest.mark.parametrize("name", ACCELERATE)
def test_accelerate_reads_its_files(name: str) -> None:
    assert {path.stem for path in (SCRIPTS / "accelerate").glob("*")} == set(ACCELERATE)
    file = str(SCRIPTS / "accelerate" / f"{name}.yaml")
    config = load_config_from_file(file)
    assert isinstance(config, ClusterConfig)
    assert config.distributed_type == ACCELERATE[name]
    assert config.mixed_precision == "bf16"


def test_accelerate_shards_with_fsdp2(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the processes find in their environment, and what accelerate makes of it there."""
    file = str(SCRIPTS / "accelerate" / "fsdp2.yaml")
    options = launch_command_parser().parse_args(
        ["--config_file", file, "--num_processes", "2", "--module", "m3.cli"]
    )
    options, _, _ = _validate_launch_command(options)
    for name, value in prepare_multi_gpu_env(options).items():
        if name.startswith("FSDP_"):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert "FULL_STATE_DICT" in str(plugin.state_dict_type)


def test_slurm_requeues_before_the_limit(tmp_path: Path) -> None:
    """On USR1 the job is put back in the queue, its processes are stopped, and the batch script
    ends well.
    """
    script = SCRIPTS / "slurm" / "train.sbatch"
    environment = record(tmp_path, "srun", body=SRUN) | {
        "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": "77", "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
    }  # fmt: skip
    scontrol = (
        '#!/bin/sh\nif [ "$1" = show ]; then printf "node1\\nnode2\\n"; else echo "scontrol $*" '
        '>>"$RECORD"; fi\n'
    )
    record(tmp_path, "scontrol", body=scontrol)
    process = subprocess.Popen(["bash", str(script), "align", "run=here"], env=environment)
    begun, deadline = tmp_path / "arguments.begun", time.monotonic() + 60
    while not begun.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == 0
    lines = (tmp_path / "arguments").read_text().splitlines()
    assert lines[:5] == ["torchrun", "--nnodes", "2", "--nproc-per-node", "4"]
    assert "node1:29500" in lines
    at = lines.index("m3.cli")
    assert lines[at + 1 :] == [
        "train", "align", "hardware.deepspeed=scripts/deepspeed/zero3.json", "run=here", "scontrol requeue 77", "stopped",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "path",
    [*sorted(SCRIPTS.glob("*.sh")), SCRIPTS / "slurm" / "train.sbatch"],
    ids=lambda p: p.name,
)
def test_shell_scripts_parse(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)
