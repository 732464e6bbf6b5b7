"""What a user's installation holds besides code, and that versions agree."""

import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import m3
from m3.doctor import EXTRAS, LMMS_EVAL, TRANSFORMERS

ROOT = Path(__file__).resolve().parents[1]


FILES = ("constraints.txt", "constraints-serve.txt")


def pins(*files: str) -> dict[str, str]:
    lines = [
        line
        for name in files or FILES
        for line in (ROOT / "scripts" / name).read_text().splitlines()
    ]
    return dict(
        line.lower().replace("_", "-").split("==")
        for line in lines
        if line and not line.startswith("#")
    )


@pytest.fixture(scope="module")
def required(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What this tree's setup.py asks for; an older installation may still name other packages."""
    folder = tmp_path_factory.mktemp("metadata")
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True)
    requires = metadata.Distribution.at(folder / "m3.egg-info").requires
    assert requires is not None
    return requires


def test_the_version_is_one() -> None:
    assert m3.__version__ == metadata.version("m3")
    assert f"version: {m3.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_pins_are_whole(required: list[str]) -> None:
    """`pip install --no-deps -r` of them must give all that M3 and its tools need, and what is
    tested is what is pinned.
    """
    found = pins()
    assert len(found) > 80
    assert {
        "setuptools",
        "torch",
        "transformers",
        "lmms-eval",
        "pytest",
        "ruff",
        "pyright",
        "import-linter",
    } <= set(found)
    assert "torchvision" not in found
    wanted = ("train", "dev", "serve")
    needed = [one for one in required if "extra ==" not in one or any(e in one for e in wanted)]
    names = {re.split(r"[;>=<\[ ]", one)[0].lower().replace("_", "-") for one in needed}
    assert len(names) > 20
    assert names <= set(found)


def test_the_servers_pins_leave_the_others_alone() -> None:
    """They are installed on top, and only where they are asked for."""
    core, serve = (set(pins(name)) for name in FILES)
    assert {"fastapi", "openai", "prometheus-client", "ray", "uvicorn"} <= serve
    assert not core & serve


def test_the_doctor_agrees_with_the_metadata(required: list[str]) -> None:
    text = "\n".join(required)
    assert f"lmms-eval=={LMMS_EVAL}" in text
    low, high = (".".join(map(str, version)) for version in TRANSFORMERS)
    assert f"transformers<{high},>={low}" in text
    for name, (extra, _) in EXTRAS.items():
        lines = [one.replace("'", '"') for one in required if one.startswith(name)]
        assert any(f'extra == "{extra}"' in one for one in lines), (
            f"{name} is not in the extra {extra!r} of setup.py"
        )


@pytest.mark.slow
def test_a_wheel_holds_the_recipes_and_templates(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(tmp_path),
        ".",
    ]
    # built from a copy, so that no build folder is left here
    copy = tmp_path / "copy"
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    (copy / "m3").symlink_to(ROOT / "m3")
    subprocess.run(command, cwd=copy, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, least in (("m3/recipes", 3), ("m3/evaluation/templates", 1), ("m3/serving/ui", 5)):
        there = {f"{folder}/{path.name}" for path in (ROOT / folder).iterdir() if path.is_file()}
        assert len(there) >= least
        assert there <= names
    code = {str(path.relative_to(ROOT)) for path in (ROOT / "m3").rglob("*.py")}
    assert len(code) > 50
    assert code <= names
