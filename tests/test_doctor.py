"""`m3 doctor`: every judgement over given facts, and the probes over real interpreters and real
broken packages.
"""

import dataclasses
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from m3.doctor import (
    EXTRAS,
    Check,
    Facts,
    State,
    Torch,
    accelerator,
    examine,
    gather,
    import_error,
    main,
    probe_torch,
    recommend,
    render,
)
from m3.hardware import choose_device

CPU = Facts(
    python=(3, 11, 7),
    torch=Torch("2.13.0+cpu"),
    versions={
        "transformers": "5.23.0",
        "lmms-eval": "0.7.3",
        **{name: "1.0" for name, (x, _) in EXTRAS.items() if x == "train"},
    },
    import_errors={},
    lmms_eval_missing=(),
    plugin_found=True,
    nvidia_driver=False,
    cores=2,
    memory_gb=8.0,
    disk_gb=20.0,
    build_locks={},
)
GPU = dataclasses.replace(
    CPU,
    torch=Torch("2.13.0+cu130", cuda="13.0", gpus=("H200", "H200"), device="cuda"),
    nvidia_driver=True,
)


def having(facts: Facts, **versions: str) -> Facts:
    return dataclasses.replace(
        facts, versions={**facts.versions, **{k.replace("_", "-"): v for k, v in versions.items()}}
    )


def without(facts: Facts, name: str) -> Facts:
    return dataclasses.replace(
        facts, versions={k: v for k, v in facts.versions.items() if k != name}
    )


def line(facts: Facts, name: str) -> Check:
    (found,) = [check for check in examine(facts) if check.name == name]
    return found


@pytest.mark.parametrize("facts", [CPU, GPU], ids=["CPU", "GPU"])
def test_a_good_machine_has_no_problem(facts: Facts) -> None:
    assert [check for check in examine(facts) if check.state == "problem"] == []


BROKEN = "RuntimeError: operator torchvision::nms does not exist"
BRANCHES: list[tuple[Facts, str, State, str]] = [
    (
        dataclasses.replace(CPU, python=(3, 10, 2)),
        "Python",
        "problem",
        "install Python 3.11 or newer",
    ),
    (
        dataclasses.replace(CPU, torch="No module named 'torch'"),
        "torch",
        "problem",
        "bash scripts/install.sh",
    ),
    (
        dataclasses.replace(CPU, torch=Torch("2.7.1")),
        "torch",
        "problem",
        "pip install 'torch>=2.8'",
    ),
    (
        dataclasses.replace(CPU, nvidia_driver=True),
        "torch",
        "problem",
        "this machine has an NVIDIA GPU",
    ),
    (
        dataclasses.replace(GPU, torch=Torch("2.13.0", cuda="13.0")),
        "torch",
        "problem",
        "the driver does not run CUDA 13.0",
    ),
    (
        dataclasses.replace(GPU, nvidia_driver=False, torch=Torch("2.13.0", cuda="13.0")),
        "torch",
        "OK",
        "",
    ),
    (
        dataclasses.replace(having(CPU, torchvision="0.28"), import_errors={"torchvision": BROKEN}),
        "torchvision",
        "problem",
        "pip uninstall -y torchvision ",
    ),
    (
        dataclasses.replace(
            having(CPU, torchvision="0.28", timm="1.0"), import_errors={"timm": BROKEN}
        ),
        "timm",
        "problem",
        "pip uninstall -y torchvision timm ",
    ),
    (
        dataclasses.replace(having(GPU, torchvision="0.28"), import_errors={"torchvision": BROKEN}),
        "torchvision",
        "problem",
        "--force-reinstall torch torchvision",
    ),
    (having(CPU, torchvision="0.28"), "torchvision", "OK", ""),
    (CPU, "torchvision", "OK", ""),
    (
        without(CPU, "transformers"),
        "transformers",
        "problem",
        "pip install 'transformers>=5.23,<5.24'",
    ),
    (having(CPU, transformers="4.57.6"), "transformers", "problem", "too old"),
    (having(CPU, transformers="5.22.2"), "transformers", "problem", "too old"),
    (having(CPU, transformers="5.23.0.dev0"), "transformers", "OK", ""),
    (having(CPU, transformers="6.0.0"), "transformers", "warning", "newer than any tested"),
    (without(CPU, "lmms-eval"), "lmms-eval", "warning", "bash scripts/install.sh"),
    (having(CPU, lmms_eval="0.7.2"), "lmms-eval", "warning", "tested with 0.7.3"),
    (
        dataclasses.replace(CPU, plugin_found=False),
        "lmms-eval",
        "problem",
        "pip install --no-deps -e .",
    ),
    (without(CPU, "peft"), "peft", "warning", "for LoRA: pip install -e '.[train]'"),
    (CPU, "deepspeed", "OK", "pip install -e '.[deepspeed]'"),
    (GPU, "deepspeed", "warning", "pip install -e '.[deepspeed]'"),
    (CPU, "ray", "OK", "pip install -e '.[serve]'"),
    (CPU, "flash-attn", "OK", ""),
    (GPU, "flash-attn", "OK", "pip install flash-attn"),
    (having(GPU, flash_attn="2.8"), "flash-attn", "OK", ""),
    (dataclasses.replace(CPU, memory_gb=2.0), "memory", "warning", "smaller data.pack_length"),
    (dataclasses.replace(CPU, disk_gb=0.5), "disk (free, here)", "warning", "free some"),
]


@pytest.mark.parametrize(("facts", "name", "state", "advice"), BRANCHES)
def test_a_judgement_and_what_to_do(facts: Facts, name: str, state: State, advice: str) -> None:
    check = line(facts, name)
    assert check.state == state
    assert advice in check.advice if advice else check.advice == ""


def test_a_broken_import_is_quoted() -> None:
    facts = dataclasses.replace(
        having(CPU, torchvision="0.28"), import_errors={"torchvision": BROKEN}
    )
    assert line(facts, "torchvision").finding == f"0.28 does not import: {BROKEN}"


def test_a_slim_harness_is_said_to_be_slim() -> None:
    facts = dataclasses.replace(CPU, lmms_eval_missing=("av", "wandb"))
    assert "slim: 2 of its packages are left out" in line(facts, "lmms-eval").finding


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (CPU, "CPU"),
        (GPU, "CUDA"),
        (
            dataclasses.replace(
                CPU, torch=Torch("2.13.0", hip="7.0", gpus=("MI300",), device="cuda")
            ),
            "ROCm",
        ),
        (dataclasses.replace(CPU, torch=Torch("2.13.0", device="mps")), "MPS"),
        (dataclasses.replace(CPU, torch=Torch("2.13.0", device="npu")), "NPU"),
        (dataclasses.replace(CPU, torch=Torch("2.13.0", device="xpu")), "XPU"),
        (dataclasses.replace(CPU, torch="no torch"), "CPU"),
    ],
)
def test_the_accelerator_is_told_apart(facts: Facts, expected: str) -> None:
    assert accelerator(facts) == expected


def test_recommendations_follow_the_machine() -> None:
    assert recommend(CPU) == [
        "export OMP_NUM_THREADS=2",
        "hardware.precision=float32   (in a recipe)",
    ]
    assert recommend(having(GPU, flash_attn="2.8")) == [
        "hardware.precision=bfloat16   (in a recipe)",
        "attention=flash_attention_2   (in lmms-eval's --model_args)",
        "torchrun --nproc_per_node 2 -m m3.cli train RECIPE",
    ]


def test_the_table_puts_advice_under_its_line() -> None:
    table = render([Check("a", "OK", "1"), Check("long", "problem", "2", "do this")])
    assert table.splitlines() == [
        "OK       a     1",
        "problem  long  2",
        "               -> do this",
        "",
        "1 problems, 0 warnings",
    ]


def test_an_import_that_fails_says_its_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_package.py").write_text("raise RuntimeError('operator does not exist')\n")
    (tmp_path / "dying_package.py").write_text("import os\nos._exit(9)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert import_error("broken_package") == "RuntimeError: operator does not exist"
    assert import_error("dying_package") == "exit code 9"
    assert import_error("json") == ""


def test_torch_is_probed_in_an_interpreter_of_its_own(tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", with_pip=False, symlinks=os.name != "nt")
    assert (
        probe_torch(str(tmp_path / "bare" / "bin" / "python"))
        == "ModuleNotFoundError: No module named 'torch'"
    )
    here = probe_torch()
    assert isinstance(here, Torch)
    assert here.version == sys.modules["torch"].__version__
    assert here.device == choose_device().type


def test_what_a_broken_removal_leaves_does_not_stop_the_doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone-1.0.dist-info").mkdir()
    (tmp_path / "gone-1.0.dist-info" / "METADATA").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert gather().versions["transformers"].startswith("5.")


def test_this_machine_is_seen_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    facts = gather()
    assert facts.python == sys.version_info[:3]
    assert facts.versions["transformers"].startswith("5.")
    assert facts.plugin_found
    assert facts.cores >= 1
    assert 0.1 < facts.memory_gb < 1e5
    problems = [check for check in examine(facts) if check.state == "problem"]
    assert main([]) == int(bool(problems))
    assert f"{len(problems)} problems" in capsys.readouterr().out


def put_package(folder: Path, name: str, version: str, code: str) -> None:
    """A package as pip would leave it."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(code)
    about = folder / f"{name}-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def diagnose(folder: Path) -> str:
    """What the command says of an environment with the packages of `folder`, which it must find
    faulty.
    """
    ran = subprocess.run(
        [sys.executable, "-m", "m3.cli", "doctor"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(folder)},
    )
    assert ran.returncode == 1, ran.stderr
    return ran.stdout


@pytest.mark.slow
def test_a_torchvision_of_another_torch_is_found_by_the_command_itself(tmp_path: Path) -> None:
    """The broken package is a real one on the path: `import m3` must survive it for the doctor
    to be of use.
    """
    put_package(
        tmp_path,
        "torchvision",
        "0.28.0",
        f"raise {BROKEN.partition(':')[0]}({BROKEN.partition(': ')[2]!r})\n",
    )
    said = diagnose(tmp_path)
    assert f"0.28.0 does not import: {BROKEN}" in said
    assert "pip uninstall -y torchvision" in said


@pytest.mark.slow
def test_a_transformers_too_old_to_import_does_not_stop_the_doctor(tmp_path: Path) -> None:
    put_package(tmp_path, "transformers", "4.0.0", "__version__ = '4.0.0'\n")
    assert "too old: pip install 'transformers>=5.23,<5.24'" in diagnose(tmp_path)
