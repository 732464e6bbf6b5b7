"""A sweep: every cell scored, nothing computed twice, killed and resumed to the same tables."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from m3.evaluation import arguments, report, sweep
from m3.evaluation.engine import Engine
from m3.evaluation.store import Store
from tests.evaluation.conftest import save_model, write_tasks


def run_sweep(
    run: Path, task_folder: Path, *models: Path, tasks: str = "tiny", scales: str = "1,9,36", extra: str = ""
) -> int:
    given = [*map(str, models), "--tasks", tasks, "--scales", scales, "--include-path", str(task_folder)]
    return sweep.main(
        [*given, "--out", str(run), "--batch-size", "2", "--no-latency", "--device", "cpu", *extra.split()]
    )


def rows(run: Path, name: str = "cells.csv") -> list[dict[str, str]]:
    with (run / name).open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "base", seed=1, scales=[36])


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, base_folder: Path, task_folder: Path) -> Path:
    run = tmp_path_factory.mktemp("sweep") / "run"
    assert run_sweep(run, task_folder, model_folder, base_folder, tasks="tiny,tiny_choice") == 0
    return run


def test_every_cell_is_scored(swept: Path):
    cells = rows(swept)
    assert len(cells) == 2 * 3 * 3
    assert {cell["status"] for cell in cells} == {"ok"}
    for cell in cells:
        assert (cell["n"], float(cell["visual_tokens"])) == ("6", float(cell["scale"]))
        result = json.loads((swept / "results" / cell["model"] / f"{cell['task']}@{cell['scale']}.json").read_text())
        assert result["results"][cell["task"]][f"{cell['metric']},none"] == pytest.approx(float(cell["value"]))
    assert {cell["clusters"] for cell in cells if cell["task"] == "tiny_two"} == {"3"}  # two questions about each image
    assert len(rows(swept, "cost.csv")) == 2 * 3
    assert rows(swept, "latency.csv") == []  # --no-latency


def test_answers_equal_the_harness_at_one_scale(swept: Path, engine: Engine, task_folder: Path):
    """What the sweep stored is what the plug-in answers on its own."""
    from lmms_eval import evaluator
    from lmms_eval.tasks import TaskManager

    from m3.evaluation.lmms import EngineModel

    manager = TaskManager(include_path=str(task_folder), include_defaults=False)
    model = EngineModel(engine, 9, 2, is_simple=False)
    results = evaluator.simple_evaluate(model=model, tasks=["tiny_one"], task_manager=manager, bootstrap_iters=0)
    keys = json.loads((swept / "results" / "tiny" / "tiny_one@9.json").read_text())["m3_keys"]
    store = Store(swept / "store")
    samples = results["samples"]["tiny_one"]
    assert len(samples) == 6
    for sample in samples:
        assert store.answer(keys[str(sample["doc_id"])]).text == sample["filtered_resps"][0]


def test_each_image_is_encoded_once_for_all_scales(
    tmp_path: Path, model_folder: Path, task_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: list[int] = []
    see = Engine.see

    def counted(self: Engine, pictures: list, batch_size: int) -> None:
        before = self.images_seen
        see(self, pictures, batch_size)
        seen.append(self.images_seen - before)

    monkeypatch.setattr(Engine, "see", counted)
    assert run_sweep(tmp_path / "run", task_folder, model_folder) == 0
    assert sum(seen) == 6  # tiny_two shows three of tiny_one's six images again


def test_second_sweep_computes_nothing_and_says_the_same(
    swept: Path, model_folder: Path, base_folder: Path, task_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    before = (swept / "cells.csv").read_bytes()

    def refuse(*_: object) -> None:
        raise AssertionError("an answer that is in the store was computed again")

    monkeypatch.setattr(Engine, "_run", refuse)
    monkeypatch.setattr(Engine, "see", refuse)
    assert run_sweep(swept, task_folder, model_folder, base_folder, tasks="tiny,tiny_choice") == 0
    assert (swept / "cells.csv").read_bytes() == before


def test_more_scales_leave_the_others_as_they_are(swept: Path, tmp_path: Path, model_folder: Path, task_folder: Path):
    assert run_sweep(tmp_path / "run", task_folder, model_folder, scales="4,9") == 0
    known = {(cell["task"], cell["scale"]): cell["value"] for cell in rows(swept) if cell["model"] == "tiny"}
    for cell in rows(tmp_path / "run"):
        if cell["scale"] == "9":
            assert cell["value"] == known[cell["task"], "9"]


def test_report_of_a_real_sweep(swept: Path):
    assert report.main([str(swept)]) == 0
    page = (swept / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3 * 2  # tasks, examples of each


def test_failing_task_is_shown_failed_and_the_others_are_scored(tmp_path: Path, model_folder: Path, task_folder: Path):
    assert (
        run_sweep(
            tmp_path / "run", task_folder, model_folder, tasks="tiny_broken,tiny_one", scales="9", extra="--limit 1"
        )
        == 1
    )
    by_task = {cell["task"]: cell for cell in rows(tmp_path / "run")}
    assert by_task["tiny_broken"]["status"] == "failed"
    assert "the metric of this task is broken" in by_task["tiny_broken"]["error"]
    assert by_task["tiny_one"]["status"] == "ok"
    assert by_task["tiny_one"]["n"] == "1"


def test_mistakes_are_named(tmp_path: Path, model_folder: Path, task_folder: Path):
    with pytest.raises(ValueError, match=r"model tiny: scale 100 cannot be reached .* choose one of 1, 4, 9, 36"):
        run_sweep(tmp_path, task_folder, model_folder, scales="9,100")
    with pytest.raises(ValueError, match="--scales takes numbers of visual tokens"):
        run_sweep(tmp_path, task_folder, model_folder, scales="9,many")
    with pytest.raises(ValueError, match="--limit must be at least 1, got 0"):
        run_sweep(tmp_path, task_folder, model_folder, extra="--limit 0")
    with pytest.raises(ValueError, match="a model is given twice"):
        run_sweep(tmp_path, task_folder, model_folder, model_folder)


def test_labels_tell_models_apart():
    assert list(arguments.labels(["a/b/m3-tiny", "x/other"])) == ["m3-tiny", "other"]
    assert list(arguments.labels(["a/tiny", "b/tiny"])) == ["a_tiny", "b_tiny"]
    assert list(arguments.labels(["runs/mine/checkpoints/final", "playground/m3-tiny"])) == ["mine", "m3-tiny"]


@pytest.mark.slow
def test_killed_sweep_resumes_to_the_same_tables(tmp_path: Path, model_folder: Path):
    tasks = write_tasks(tmp_path / "tasks", documents=40)
    assert run_sweep(tmp_path / "whole", tasks, model_folder) == 0
    command = [sys.executable, "-m", "m3.cli", "sweep", str(model_folder), "--tasks", "tiny", "--scales", "1,9,36"]
    command += ["--include-path", str(tasks), "--out", str(tmp_path / "killed"), "--batch-size", "2", "--no-latency"]
    victim = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    store = tmp_path / "killed" / "store"
    deadline = time.monotonic() + 300
    while victim.poll() is None and sum(len(p.read_bytes().splitlines()) for p in store.glob("*.jsonl")) < 40:
        assert time.monotonic() < deadline, "the sweep stored nothing"
        time.sleep(0.002)
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL
    kept = len(Store(store))
    assert 0 < kept < 240, "the kill came too late to be a test"
    assert run_sweep(tmp_path / "killed", tasks, model_folder) == 0
    assert (tmp_path / "killed" / "cells.csv").read_bytes() == (tmp_path / "whole" / "cells.csv").read_bytes()
    whole, resumed = Store(tmp_path / "whole" / "store"), Store(store)
    files = sorted((tmp_path / "whole" / "results").rglob("*.json"))
    assert len(files) == 6
    for file in files:
        keys = json.loads(file.read_text())["m3_keys"]
        again = json.loads((tmp_path / "killed" / file.relative_to(tmp_path / "whole")).read_text())["m3_keys"]
        assert keys == again
        assert [whole.answer(key).text for key in keys.values()] == [resumed.answer(key).text for key in keys.values()]
