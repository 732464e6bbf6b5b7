"""The examples in three languages, as a user runs them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI
from serving_files import ask, png, serving

from m3.inference import load
from m3.serving.engine.engine import Engine
from m3.serving.settings import Settings

FOLDER = Path(__file__).resolve().parents[2] / "playground" / "serving"
EXAMPLES = {"ask.sh": "bash", "ask.py": sys.executable, "ask.mjs": "node"}
QUESTION = 'What is "it"?'


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    settings = Settings(name="m3-tiny")
    with serving(
        Engine(*load(FOLDER.parent / "m3-tiny", device="cpu"), settings), settings
    ) as address:
        yield address


def test_every_example_is_run() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_the_answer(address: str, tmp_path: Path, name: str) -> None:
    program = shutil.which(EXAMPLES[name])
    if program is None:
        pytest.skip(f"{EXAMPLES[name]} is not installed")
    (tmp_path / "photo.png").write_bytes(png())
    answer = OpenAI(base_url=f"{address}/v1", api_key="none").chat.completions.create(
        model="m3-tiny",
        messages=ask(png(), question=QUESTION),
        extra_body={"matryoshka_vis_token_scale": 9},
    )
    command = [program, str(FOLDER / name), str(tmp_path / "photo.png"), QUESTION, "9"]
    ran = subprocess.run(
        command,
        env=os.environ | {"M3_SERVER": address},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert answer.choices[0].message.content in ran.stdout
    assert "9" in ran.stdout or name == "ask.mjs"  # the tokens it took
