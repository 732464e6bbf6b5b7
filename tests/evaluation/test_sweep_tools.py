"""What stands around the sweep: suites on the command line, judges, copies of data, disk."""

import os
import tarfile
from pathlib import Path

import pytest
import yaml

from m3.evaluation.harness import download as fetch
from m3.evaluation.harness import judge
from m3.evaluation.harness.local_data import Data, local_copy, read_task, write_overlay
from m3.evaluation.harness.tasks import find_tasks
from m3.evaluation.sweep.options import SweepOptions, methods_in, parse_options
from m3.evaluation.sweep.progress import check_disk
from m3.evaluation.sweep.selection import task_names
from m3.text_table import duration


def test_an_unknown_dtype_is_refused_before_anything_runs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parse_options(["model", "--dtype", "float64", "--out", "out"])
    assert "invalid choice: 'float64' (choose from" in capsys.readouterr().err


def test_suites_leave_judged_tasks_out_and_named_ones_ask_for_a_judge():
    names, left_out = task_names(["llava15", "m3_tiny"], ["tiny_one"], has_judge=False)
    assert names[:2] == ["tiny_one", "vqav2_val"] and "m3_tiny_chart" in names
    assert left_out == ["mmbench_cn_dev", "llava_in_the_wild", "mmvet"]
    assert "mmvet" in task_names(["llava15"], [], has_judge=True)[0]
    with pytest.raises(
        ValueError,
        match="mmvet asks a language model to score the answers, which costs money: .* "
        "--judge MODEL",
    ):
        task_names([], ["mmvet"], has_judge=False)
    with pytest.raises(
        ValueError, match="name what to evaluate: --tasks, or --suite with one of aria, llava15"
    ):
        task_names([], [], has_judge=False)


def test_methods_and_frames_are_read_strictly():
    assert methods_in("random, nesting,random") == ("random", "nesting")
    with pytest.raises(ValueError, match="no method 'randm'. Did you mean 'random'"):
        methods_in("randm")
    with pytest.raises(
        ValueError, match="frames of a video are a number, or collage .* got 'many'"
    ):
        parse_options(["model", "--tasks", "t", "--frames", "many"])


def test_the_command_line_is_read_once_into_typed_options():
    argv = ["a", "b", "--tasks", "x, y", "--scales", "9, 1", "--no-latency", "--limit", "3"]
    assert parse_options(argv) == SweepOptions(
        models=("a", "b"),
        tasks=("x", "y"),
        scales=(9, 1),
        measures_latency=False,
        limit=3,
        command=("m3", "sweep", *argv),
    )
    with pytest.raises(ValueError, match="--scales takes numbers .* such as 36@48, .*; got '1,x'"):
        parse_options(["a", "--scales", "1,x"])
    with pytest.raises(ValueError, match="--batch-size must be at least 1, got 0"):
        SweepOptions(models=("a",), batch_size=0)


def test_a_judge_says_what_it_costs_and_needs_a_key(monkeypatch: pytest.MonkeyPatch):
    assert str(judge.price("mmvet", 218, 10)) == "mmvet: up to 2180 calls, about 1.5 million tokens"
    for name in (
        "API_TYPE",
        "MODEL_VERSION",
        "OPENAI_API_URL",
        "OPENAI_BASE_URL",
        "OPENAI_API_MODEL",
        judge.KEY,
    ):
        monkeypatch.setenv(name, "")  # so that what is set below does not stay
        monkeypatch.delenv(name)
    with pytest.raises(
        ValueError, match="--judge j needs a key in the environment variable OPENAI_API_KEY"
    ):
        judge.set_judge("j", None)
    monkeypatch.setenv(judge.KEY, "word")
    judge.set_judge("j", "http://localhost:8000/v1")
    assert os.environ["OPENAI_API_URL"] == "http://localhost:8000/v1/chat/completions"
    assert (os.environ["MODEL_VERSION"], os.environ["OPENAI_BASE_URL"]) == (
        "j",
        "http://localhost:8000/v1",
    )


def hub_task(folder: Path) -> Path:
    """A task as the harness has them: data on the hub, videos under HF_HOME."""
    folder.mkdir(parents=True)
    (folder / "_template").write_text("dataset_path: somebody/Clips\ntest_split: test\n")
    path = folder / "clips.yaml"
    path.write_text(
        "include: _template\ntask: clips\ndoc_to_visual: !function utils.visual\n"
        "dataset_kwargs: {token: true, video: true, cache_dir: clips/files, revision: v1}\n"
    )
    return path


def test_an_overlay_changes_where_the_data_are_and_nothing_else(tmp_path: Path):
    path, root = hub_task(tmp_path / "tasks"), tmp_path / "data"
    root.mkdir()
    with pytest.raises(
        ValueError,
        match=r"no copy of somebody/Clips in --data-root .*Clips. `m3 data fetch-eval` "
        r"makes one",
    ):
        write_overlay(tmp_path / "overlays", "clips", path, root)
    (root / "Clips").mkdir()
    with pytest.raises(ValueError, match=r"no videos of somebody/Clips in .*clips/files: unpack"):
        write_overlay(tmp_path / "overlays", "clips", path, root)
    (root / "clips" / "files").mkdir(parents=True)
    overlay = read_task(write_overlay(tmp_path / "overlays", "clips", path, root))
    changed = {"dataset_path": str(root / "Clips"), "dataset_kwargs": {"revision": "v1"}}
    assert overlay == read_task(path) | changed
    (root / "somebody" / "Clips").mkdir(parents=True)
    assert local_copy(Data.of(read_task(path)), root) == root / "somebody" / "Clips"
    assert not Data.of({"dataset_path": "parquet"}).is_remote


@pytest.mark.parametrize(
    ("name", "link", "message"),
    [
        ("../outside.mp4", None, "outside.mp4 would be written outside of"),
        ("one.mp4", "gone.mp4", "one.mp4 is a link to gone.mp4, which is not in the archive"),
    ],
)
def test_an_archive_that_is_not_safe_or_whole_is_refused(
    tmp_path: Path, name: str, link: str | None, message: str
):
    (tmp_path / "Clips").mkdir()
    member = tarfile.TarInfo(name)
    if link is not None:
        member.type, member.linkname = tarfile.SYMTYPE, link
    with tarfile.open(tmp_path / "Clips" / "a.tar", "w") as archive:
        archive.addfile(member)
    with pytest.raises(ValueError, match=message):
        fetch.unpack(tmp_path / "Clips", tmp_path / "data" / "clips")
    assert (
        not (tmp_path / "data" / "outside.mp4").exists()
        and not (tmp_path / "data" / "clips").exists()
    )


def test_fetching_copies_each_data_set_once_and_unpacks_videos(tmp_path: Path):
    hub_task(tmp_path / "tasks")
    asked: list[str] = []

    def download(dataset: str, folder: Path) -> None:
        asked.append(dataset)
        import tarfile
        import zipfile

        with zipfile.ZipFile(folder / "a.zip", "w") as archive:
            archive.writestr("one.mp4", b"1")
        (folder / "two.mp4").write_bytes(b"22")
        with tarfile.open(folder / "b.tar", "w") as archive:
            archive.add(folder / "two.mp4", "two.mp4")
        whole = (folder / "b.tar").read_bytes()
        (folder / "b.tar.partaa").write_bytes(whole[:700])
        (folder / "b.tar.partab").write_bytes(whole[700:])
        (folder / "b.tar").unlink()
        (folder / "two.mp4").unlink()

    for _ in range(2):
        assert fetch.fetch(["clips"], tmp_path / "data", tmp_path / "tasks", download) == [
            tmp_path / "data" / "Clips"
        ]
    assert asked == ["somebody/Clips"]
    videos = {
        path.name: path.read_bytes() for path in (tmp_path / "data" / "clips" / "files").iterdir()
    }
    assert videos == {"one.mp4": b"1", "two.mp4": b"22"}


def test_fetching_without_a_network_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError,
        match=r"somebody/Clips cannot be fetched from the hub \(.*fetch on a machine "
        r"that has one",
    ):
        fetch.from_hub("somebody/Clips", tmp_path / "Clips")


def test_groups_are_their_tasks_in_order(task_folder: Path):
    assert [file.name for file in find_tasks(["tiny", "tiny_one"], task_folder)] == [
        "tiny_one",
        "tiny_two",
    ]
    with pytest.raises(ValueError, match="no task 'tiny_oen' in .*Did you mean 'tiny_one'"):
        find_tasks(["tiny_oen"], task_folder)


def test_a_full_disk_is_foreseen(tmp_path: Path):
    check_disk(tmp_path, 1)
    with pytest.raises(
        ValueError,
        match=r"free on this disk, but 1000000000000 answers may need 3000000.2 GB. "
        r"Free some",
    ):
        check_disk(tmp_path, 10**12)
    assert [duration(seconds) for seconds in (5.0, 95.0, 7380.0)] == [
        "5 s",
        "1 min 35 s",
        "2 h 3 min",
    ]


def test_groups_in_groups_and_groups_of_what_there_is_not(tmp_path: Path):
    """As lmms-eval has them: mmlu_generative writes groups where it names them, olympiadbench
    names a task that is not there.
    """
    for name in ("one", "two", "three"):
        (tmp_path / f"{name}.yaml").write_text(f"task: {name}\ndataset_path: json\n")
    nested = {"group": "inner", "task": ["two", {"task": "three", "num_fewshot": 0}]}
    (tmp_path / "outer.yaml").write_text(
        yaml.safe_dump({"group": "outer", "task": ["one", nested]})
    )
    (tmp_path / "torn.yaml").write_text("group: torn\ntask: [one, nowhere]\n")
    assert [file.name for file in find_tasks(["outer"], tmp_path)] == ["one", "two", "three"]
    with pytest.raises(ValueError, match="the group torn names nowhere, but there is no such task"):
        find_tasks(["torn"], tmp_path)
