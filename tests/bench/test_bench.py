"""`m3 bench`: it measures what it says; no time is asserted."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from bench_tasks import allocate, fail

from m3.bench import step
from m3.bench.command import main
from m3.bench.timing import Timing, alternate, peak_memory


def test_tasks_run_turn_about_and_the_warm_up_is_left_out() -> None:
    order: list[str] = []
    timings = alternate([lambda: order.append("a"), lambda: order.append("b")], repetitions=2, warm_up=1)
    assert order == ["a", "b"] * 3
    assert [len(t.seconds) for t in timings] == [2, 2]
    assert Timing((1.0, 9.0, 2.0)).median == 2.0
    assert Timing((1.0, 3.0)).spread == 1.0


@pytest.mark.slow
def test_peak_memory_is_that_of_the_work_alone() -> None:
    few, many = peak_memory(allocate, 20), peak_memory(allocate, 120)
    assert 90 * 2**20 < many - few < 110 * 2**20
    with pytest.raises(RuntimeError, match="ended with code 3"):
        peak_memory(fail)


@pytest.mark.slow
def test_step_compares_two_ways_of_equal_gradients(
    tmp_path: Path, tiny_checkpoint: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(tiny_checkpoint(tmp_path / "model"))
    code = main(["step", "--model", model, "--images", "6", "--rounds", "2", "--repetitions", "1", "--threads", "1"])
    printed = capsys.readouterr().out
    assert code == 0
    assert float(re.search(r"relative difference (\S+)", printed)[1]) < 1e-5
    assert re.search(r"ours is \d+\.\d\dx faster at \d+\.\d\dx the memory", printed)


@pytest.mark.slow
def test_train_compares_every_way_of_equal_gradients(
    tmp_path: Path, tiny_checkpoint: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(tiny_checkpoint(tmp_path / "model"))
    assert main(["train", "--model", model, "--images", "3", "--repetitions", "1", "--threads", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["published", "padded", "packed", "low", "largest"]


def test_suite_samples_keep_as_many_questions_as_asked() -> None:
    assert [len(sample.turns) for sample in step.suite_samples(6, 1)] == [2] * 6
    assert all(len(sample.turns) > 2 for sample in step.suite_samples(6, 0))


def test_unknown_bench_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["swep"])
    assert "invalid choice: 'swep'" in capsys.readouterr().err
