"""Real benchmarks end to end on local copies: the harness's prompts and metrics, and the scores
of its own command line.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from m3.evaluation.answering.engine import Engine
from m3.evaluation.answering.questions import Question
from m3.evaluation.harness import submit
from m3.evaluation.sweep.command import main
from tests.evaluation.benchmark_mirrors import write_long_videos, write_mirrors, write_video_qa
from tests.evaluation.test_sweep import rows

TASKS = ["pope", "textvqa_val", "chartqa", "mmbench_en_dev_static", "nextqa_mc_test"]
METRICS = {
    "pope": "pope_f1_score",
    "textvqa_val": "exact_match",
    "chartqa": "relaxed_overall",
    "mmbench_en_dev_static": "gpt_eval_score",
    "nextqa_mc_test": "exact_match",
}
REPOSITORY = Path(__file__).parents[2]
# it ends its answers; what they say does not matter here
MODEL = REPOSITORY / "playground" / "m3-tiny"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video_qa(write_mirrors(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks") / "run"
    arguments = [
        str(MODEL),
        "--tasks",
        ",".join(TASKS),
        "--scales",
        "4,9",
        "--data-root",
        str(root),
        "--frames",
        "3",
    ]
    assert (
        main(
            [
                *arguments,
                "--out",
                str(folder),
                "--batch-size",
                "4",
                "--no-latency",
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    return folder


@pytest.mark.slow
def test_five_benchmarks_run_on_local_copies(run: Path):
    cells = {
        (cell["task"], cell["scale"]): cell for cell in rows(run) if cell["is_primary"] == "True"
    }
    assert set(cells) == {(task, scale) for task in TASKS for scale in ("4", "9")}
    assert {task: cells[task, "9"]["metric"] for task in TASKS} == METRICS
    assert {cell["n"] for cell in cells.values()} == {"6"}
    assert cells["pope", "9"]["visual_tokens"] == "9.0"
    assert cells["nextqa_mc_test", "9"]["visual_tokens"] == "27.0"  # three frames


@pytest.mark.slow
def test_scores_are_those_of_the_harness_own_command_line(run: Path, root: Path, tmp_path: Path):
    """One process of lmms-eval at one scale, the same overlays; every number it reports is ours,
    to the last bit.
    """
    # under other names: its command line prefers its own tasks to included ones
    copies = tmp_path / "tasks"
    copies.mkdir()
    for task in TASKS:
        overlay = (run / "tasks" / f"{task}.yaml").read_text()
        (copies / f"{task}.yaml").write_text(
            overlay.replace(f"task: {task}\n", f"task: {task}_copy\n")
        )
    names = ",".join(f"{task}_copy" for task in TASKS)
    command = [sys.executable, "-m", "lmms_eval", "--model", "m3", "--model_args"]
    command += [f"pretrained={MODEL},matryoshka_vis_token_scale=9,frames=3", "--tasks", names]
    command += [
        "--include_path",
        str(copies),
        "--batch_size",
        "4",
        "--device",
        "cpu",
        "--log_samples",
    ]
    command += ["--process_docs_parallel", "1", "--output_path", str(tmp_path)]
    environment = {**os.environ, "HF_HOME": str(root), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    files = list(tmp_path.rglob("2*_results.json"))
    assert len(files) == 1, done.stderr[-3000:]
    theirs = json.loads(files[0].read_text())["results"]
    compared = 0
    for task in TASKS:
        ours = json.loads((run / "results" / "m3-tiny" / f"{task}@9.json").read_text())["results"][
            task
        ]
        numbers = {
            name: value
            for name, value in theirs[f"{task}_copy"].items()
            if isinstance(value, int | float) and "," in name and "stderr" not in name
        }
        assert numbers
        for name, value in numbers.items():
            assert ours[name] == value, (task, name)
            compared += 1
    assert compared >= 8


@pytest.mark.slow
def test_files_for_servers_are_distinct(run: Path, capsys: pytest.CaptureFixture[str]):
    assert submit.main([str(run), "--all"]) == 0
    printed = capsys.readouterr().out
    names = sorted(path.name for path in (run / "submit").iterdir())
    assert [name for name in names if name.startswith("textvqa_val")] == [
        "textvqa_val__m3-tiny__4_tokens.json",
        "textvqa_val__m3-tiny__9_tokens.json",
    ]
    assert "mmbench_en_dev_static__m3-tiny__9_tokens.xlsx" in names
    assert all(name in printed for name in names)
    four, nine = (
        json.loads((run / "submit" / f"textvqa_val__m3-tiny__{scale}_tokens.json").read_text())
        for scale in (4, 9)
    )
    assert (
        [row["question_id"] for row in four]
        == [row["question_id"] for row in nine]
        == list(range(6))
    )
    with pytest.raises(
        ValueError,
        match="has no file for a server .*--all takes those of mmbench_en_dev_static, textvqa_val",
    ):
        submit.main([str(run)])


@pytest.mark.slow
def test_own_video_tasks_run_and_missing_copies_fail_alone(tmp_path: Path, root: Path):
    arguments = [
        str(MODEL),
        "--tasks",
        "msvd_qa,intentqa,star",
        "--scales",
        "4",
        "--data-root",
        str(root),
    ]
    arguments += [
        "--frames",
        "collage",
        "--include-path",
        str(REPOSITORY / "lmms_eval_tasks"),
        "--device",
        "cpu",
    ]
    assert main([*arguments, "--out", str(tmp_path / "run"), "--no-latency"]) == 1
    cells = {cell["task"]: cell for cell in rows(tmp_path / "run")}
    # six frames are one image
    assert (cells["msvd_qa"]["status"], cells["msvd_qa"]["visual_tokens"]) == ("ok", "4.0")
    assert cells["intentqa"]["status"] == "ok"
    assert cells["star"]["status"] == "failed"
    assert "no copy of STAR in --data-root" in cells["star"]["error"]


LONG = ("videomme", "videomme_w_subtitle", "longvideobench_val_v", "longvideobench_val_i")


@pytest.fixture(scope="module")
def long_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("cv2", "decord"):
        pytest.importorskip(
            package, reason="the harness's tasks read videos with it (extra: benchmarks)"
        )
    return write_long_videos(tmp_path_factory.mktemp("long"))


@pytest.mark.slow
def test_long_video_benchmarks_run_on_local_copies(
    tmp_path: Path, long_videos: Path, monkeypatch: pytest.MonkeyPatch
):
    """Video-MME and LongVideoBench, with and without subtitles."""
    asked: dict[str, int] = {}
    question = Engine.question

    def kept(self: Engine, messages: list, pictures: list, *rest: object) -> Question:
        asked[messages[0]["content"]] = len(pictures)
        return question(self, messages, pictures, *rest)

    monkeypatch.setattr(Engine, "question", kept)
    arguments = [
        str(MODEL),
        "--tasks",
        ",".join(LONG),
        "--scales",
        "4,9",
        "--data-root",
        str(long_videos),
        "--frames",
        "2",
    ]
    assert (
        main([*arguments, "--out", str(tmp_path / "run"), "--no-latency", "--device", "cpu"]) == 0
    )
    cells = {(cell["task"], cell["scale"]): cell for cell in rows(tmp_path / "run")}
    assert set(cells) == {(task, scale) for task in LONG for scale in ("4", "9")}
    assert {cell["n"] for cell in cells.values()} == {"3"}
    # the last: one frame a second, chosen by the harness
    for task, frames in zip(LONG, (2, 2, 2, 3), strict=True):
        assert float(cells[task, "9"]["visual_tokens"]) == 9 * frames
    assert cells["videomme", "9"]["metric"] == "videomme_perception_score"
    assert cells["longvideobench_val_v", "9"]["metric"] == "lvb_acc"
    prompts = "\n".join(asked)
    assert "This video's subtitles are listed below: \nspoken 1\nSelect the best answer" in prompts
    assert "This video's subtitles are listed below: \nNo subtitles available\nSelect" in prompts
    assert (
        "said 2" in prompts
        and "C. blue\nD. white\nE. black\nAnswer with the option's letter" in prompts
    )
    assert "D. white\nAnswer with the option's letter" in prompts  # the one with four options
    assert sorted(set(asked.values())) == [2, 3]


@pytest.mark.slow
def test_a_lost_video_fails_its_task_alone(tmp_path: Path, long_videos: Path):
    """The harness's task calls sys.exit where a video is missing: that must not end the sweep."""
    root = shutil.copytree(long_videos, tmp_path / "data")
    (root / "videomme" / "data" / "tube1.mp4").unlink()
    arguments = [
        str(MODEL),
        "--tasks",
        "videomme,longvideobench_val_v",
        "--scales",
        "4",
        "--data-root",
        str(root),
    ]
    assert (
        main(
            [
                *arguments,
                "--frames",
                "2",
                "--out",
                str(tmp_path / "run"),
                "--no-latency",
                "--device",
                "cpu",
            ]
        )
        == 1
    )
    cells = {cell["task"]: cell for cell in rows(tmp_path / "run")}
    assert cells["videomme"]["status"] == "failed"
    assert "tube1.mp4 does not exist, please check" in cells["videomme"]["error"]
    assert cells["longvideobench_val_v"]["status"] == "ok"


def test_choices_are_read_and_never_guessed():
    path = REPOSITORY / "lmms_eval_tasks" / "video_qa" / "utils.py"
    spec = importlib.util.spec_from_file_location("video_qa_utils", path)
    utils = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(utils)
    doc = {
        "question": "why?",
        "answer": 1,
        "a0": "the red one",
        "a1": "a dog",
        "a2": "cat",
        "a3": "x",
        "a4": None,
    }
    assert utils.choice_text(doc).splitlines() == [
        "why?",
        "A. the red one",
        "B. a dog",
        "C. cat",
        "D. x",
    ]
    for text, letter in {
        "B": "B",
        "b": "",
        "(C) cat": "C",
        "D.": "D",
        "dog": "B",
        "Because": "",
        "": "",
        "A dog": "B",
    }.items():
        assert utils.chosen(text, doc) == letter, text
    assert utils.choice_results(doc, ["B."]) == {"exact_match": 1.0}
    assert utils.open_results({"answer": "dog"}, ["A dog."]) == {"exact_match": 1.0}
