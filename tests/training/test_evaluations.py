"""`evaluation` in a recipe: a sweep of the live model every few steps, which leaves training as
it was.
"""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from training_runs import weights

from m3.evaluation.analysis.summary import Summary
from m3.evaluation.results.store import Store
from m3.evaluation.sweep import command as sweep
from m3.train import main
from m3.training import command
from m3.training.loop.evaluations import kept_random_state
from m3.training.loop.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
TASKS = ["m3_tiny_scene", "m3_tiny_count"]
INCLUDE = ROOT / "lmms_eval_tasks"
EVALUATION = f"evaluation={{every: 2, tasks: [{', '.join(TASKS)}], scales: [1, 36], limit: 3, include_path: {INCLUDE}}}"
DROPOUT = "new_model.config.text_config.attention_dropout=0.3"
STEPS = ["schedule.steps=4", "schedule.save_every=2", "schedule.keep_checkpoints=5"]


def answers(run: Path) -> dict[tuple[str, int, int], str]:
    """What was said, by task, document and scale."""
    store = Store(run / "store")
    found = {}
    for task in TASKS:
        for scale in (1, 36):
            content = json.loads(next((run / "results").glob(f"*/{task}@{scale}.json")).read_text())
            found |= {
                (task, int(doc), scale): store.answer(key).text
                for doc, key in content["m3_keys"].items()
            }
    return found


@pytest.fixture(scope="module")
def runs(make_recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is swept on its way, `swept`, and the same one without, `plain`; dropout makes
    both depend on the draws.
    """
    recipe = make_recipe(tmp_path_factory.mktemp("swept"))
    assert main([str(recipe), DROPOUT, *STEPS, f"run={recipe.parent}/plain"]) == 0
    assert main([str(recipe), DROPOUT, *STEPS, f"run={recipe.parent}/swept", EVALUATION]) == 0
    return recipe


def test_training_is_to_the_bit_as_without(runs: Path) -> None:
    plain, swept = RunFolder(runs.parent / "plain"), RunFolder(runs.parent / "swept")
    losses = [
        [row["loss"] for row in run.read_metrics() if "loss" in row] for run in (plain, swept)
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4
    before, after = weights(plain.path), weights(swept.path)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_curve_is_in_the_metrics(runs: Path) -> None:
    rows = [row for row in RunFolder(runs.parent / "swept").read_metrics() if "loss" not in row]
    assert [row["step"] for row in rows] == [2, 4]
    names = {f"eval_{task}_scale_{scale}" for task in [*TASKS, "mean"] for scale in (1, 36)}
    assert all(row.keys() == names | {"step"} for row in rows)


def test_it_says_what_a_sweep_of_the_checkpoint_says(runs: Path, tmp_path: Path) -> None:
    swept = runs.parent / "swept"
    live = Summary.read(swept / "evaluation" / "step-2")
    assert (live.tasks, live.scales) == (tuple(TASKS), (1, 36))
    checkpoint = str(swept / "checkpoints" / "checkpoint-2")
    options = [
        "--tasks",
        ",".join(TASKS),
        "--scales",
        "1,36",
        "--limit",
        "3",
        "--no-latency",
        "--out",
        str(tmp_path / "sweep"),
    ]
    assert sweep.main([checkpoint, *options, "--include-path", str(INCLUDE)]) == 0
    found = answers(swept / "evaluation" / "step-2")
    assert found == answers(tmp_path / "sweep")
    assert len(found) == 12
    assert len(set(found.values())) > 1


def test_an_interrupted_run_ends_as_the_whole_one(runs: Path) -> None:
    """Its evaluation is made again where it had not been saved."""
    whole = RunFolder(runs.parent / "swept")
    again = RunFolder(runs.parent / "again")
    shutil.copytree(whole.path, again.path, dirs_exist_ok=True)
    shutil.rmtree(again.final)
    shutil.rmtree(again.checkpoints / "checkpoint-4")
    recipe = (again.path / "recipe.yaml").read_text().replace(str(whole.path), str(again.path))
    (again.path / "recipe.yaml").write_text(recipe)
    assert main([str(runs), DROPOUT, *STEPS, f"run={again.path}", EVALUATION]) == 0
    measured = ("tokens_per_second", "epoch")
    rows = [
        [
            {name: value for name, value in row.items() if name not in measured}
            for row in run.read_metrics()
        ]
        for run in (whole, again)
    ]
    assert rows[0] == rows[1]
    assert answers(again.path / "evaluation" / "step-4") == answers(
        whole.path / "evaluation" / "step-4"
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["evaluation.tasks=[]"], "evaluation: name at least one of tasks"),
        (["evaluation.limit=0"], "evaluation: limit must be at least 1, got 0"),
        (["evaluation.scales=[5]"], "scale 5"),
        (["evaluation.data_root=/nowhere"], "evaluation.data_root: there is no folder /nowhere"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_training(
    recipe: Path, more: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        main([str(recipe), EVALUATION, *more])
    assert not list((recipe.parent / "run").glob("metrics.jsonl"))


def test_the_plan_says_it(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(recipe), EVALUATION, "evaluation.limit=null", "--dry-run"]) == 0
    line = "evaluation      m3_tiny_scene, m3_tiny_count at 1, 36, every 2 steps, all documents\n"
    assert line in capsys.readouterr().out


def test_training_alone_does_not_know_the_sweep(recipe: Path) -> None:
    with pytest.raises(ValueError, match="evaluation needs the sweep, which `m3 train` brings"):
        command.main([str(recipe), EVALUATION])


def test_random_states_are_kept() -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    with kept_random_state():
        random.seed(7)
        np.random.seed(7)
        torch.manual_seed(7)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.parametrize("key", ["include_path", "data_root"])
@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["run", "dry"])
def test_a_folder_that_is_not_there_is_named(key: str, more: list[str], recipe: Path) -> None:
    wanted = f"evaluation={{every: 2, tasks: [m3_tiny_scene], {key}: nowhere/at/all}}"
    with pytest.raises(
        ValueError,
        match=rf"evaluation.{key}: there is no folder nowhere/at/all "
        r"\(looked from /",
    ):
        main([str(recipe), *STEPS, wanted, *more])
