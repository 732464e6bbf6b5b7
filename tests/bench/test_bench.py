"""`m3 bench`: it measures what it says; no time is asserted."""

from collections.abc import Callable
from pathlib import Path

import pytest
from bench_tasks import allocate, fail

from m3.bench import shapes, step
from m3.bench.command import main
from m3.bench.timing import Timing, alternate, peak_memory


def test_tasks_run_turn_about_and_the_warm_up_is_left_out() -> None:
    order: list[str] = []
    timings = alternate(
        [lambda: order.append("a"), lambda: order.append("b")], repetitions=2, warm_up=1
    )
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
@pytest.mark.parametrize("shape", ["tiny", "real"])
def test_step_compares_ours_with_the_published_loop(
    shape: str,
    tmp_path: Path,
    tiny_checkpoint: Callable[[Path], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = [
        "--images",
        "1",
        "--repetitions",
        "1",
        "--pack-lengths",
        "700,1400",
        "--towers",
        "frozen,trained",
    ]
    options += ["--model", str(tiny_checkpoint(tmp_path / "model"))] if shape == "tiny" else []
    assert main(["step", "--shape", shape, *options]) == 0
    *_, first, second, third, fourth, fifth, sixth, worst = capsys.readouterr().out.splitlines()
    table = [line.split() for line in (first, second, third, fourth, fifth, sixth)]
    assert [row[:2] for row in table] == [
        [tower, way] for tower in ("frozen", "trained") for way in ("published", "700", "1400")
    ]
    assert all(float(row[-1]) <= 1e-5 for row in table)
    speeds = [float(row[8].removesuffix("x")) for row in table if row[1] != "published"]
    assert worst == f"worst: {min(speeds):.2f}x"


def test_both_ways_of_a_step_give_one_loss() -> None:
    setting = step.StepSetting("real", None, (1, 9, 36), 2, 1, (100,), "trained", 1)
    bench = step.StepBench(setting)
    published, ours = (bench.loss(way).item() for way in setting.ways)
    assert abs(published - ours) < 1e-6 * published
    assert bench.packed == "packed"
    assert all(len(lengths) == 6 for lengths in (step._lengths(bench.batches["100"]),))
    assert {
        int(row["attention_mask"].sum(1)[0]) - scale
        for row, scale in zip(bench.loop, (1, 9, 36), strict=True)
    } == {60}


def test_the_real_shape_draws_its_own_model(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="--shape real draws its own model"):
        shapes.draw_real("playground/m3-tiny", (1,))


@pytest.mark.slow
def test_train_compares_every_way_of_equal_gradients(
    tmp_path: Path, tiny_checkpoint: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(tiny_checkpoint(tmp_path / "model"))
    assert (
        main(["train", "--model", model, "--images", "3", "--repetitions", "1", "--threads", "1"])
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == [
        "published",
        "padded",
        "packed",
        "low",
        "largest",
    ]


def test_suite_samples_keep_as_many_questions_as_asked() -> None:
    assert [len(sample.turns) for sample in shapes.suite_samples(6, 1)] == [2] * 6
    assert all(len(sample.turns) > 2 for sample in shapes.suite_samples(6, 0))


def test_unknown_bench_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["swep"])
    assert "invalid choice: 'swep'" in capsys.readouterr().err
