"""lmms-eval's own API model against a served m3-tiny scores as `m3 sweep` does."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from serving_files import serving

from m3.evaluation.sweep import command as sweep
from m3.inference import load
from m3.serving.engine.engine import Engine
from m3.serving.settings import Settings

TASKS = ("m3_tiny_count", "m3_tiny_document", "m3_tiny_position")
LIMIT = os.environ.get("M3_CLIENT_LIMIT", "10")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "scale"), [("m3-tiny", 144), ("m3-tiny@9@48", "9@48")])
def test_async_openai_scores_what_the_sweep_does(
    name: str, scale: int | str, tmp_path: Path
) -> None:
    """The scale goes behind the model's name, since this client sends no fields of its own."""
    settings = Settings(name="m3-tiny")
    with serving(Engine(*load("playground/m3-tiny", device="cpu"), settings), settings) as address:
        subprocess.run(
            [
                *(sys.executable, "-m", "lmms_eval", "--model", "async_openai"),
                *("--model_args", f"model={name},base_url={address}/v1,api_key=none,num_cpus=8"),
                *("--include_path", "lmms_eval_tasks", "--tasks", ",".join(TASKS)),
                *("--limit", LIMIT, "--batch_size", "1", "--output_path", str(tmp_path / "out")),
            ],
            check=True,
        )
    (results_file,) = (tmp_path / "out").rglob("*results.json")
    results = json.loads(results_file.read_text())["results"]
    options = ["--limit", LIMIT, "--scales", str(scale), "--no-latency", "--device", "cpu"]
    run = tmp_path / "sweep"
    assert (
        sweep.main(["playground/m3-tiny", "--tasks", ",".join(TASKS), *options, "--out", str(run)])
        == 0
    )
    with (run / "cells.csv").open() as file:
        scores = {
            row["task"]: float(row["value"])
            for row in csv.DictReader(file)
            if row["is_primary"] == "True"
        }
    assert scores == {task: results[task]["exact_match,none"] for task in TASKS}
