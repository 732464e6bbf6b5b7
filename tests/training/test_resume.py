"""What may go on, and on how many devices: the recipe as it was, the samples of a step, the
shards of ZeRO.
"""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from m3.config import load
from m3.files import write_text
from m3.training.checks.resume import check_resume
from m3.training.command import main
from m3.training.loop.distributed import start_deepspeed
from m3.training.loop.run_folder import WHOLE, RunFolder
from m3.training.recipe.recipe import Recipe
from m3.training.recipe.sections import Schedule

KEPT = Schedule(batch_size=1, global_batch=4, steps=8)


@pytest.fixture
def interrupted(tmp_path: Path) -> RunFolder:
    """A run of two devices that was stopped after step 4."""
    run = RunFolder(tmp_path / "run")
    (run.checkpoints / "checkpoint-4").mkdir()
    (run.checkpoints / "checkpoint-4" / WHOLE).touch()
    write_text(run.path / "environment.json", json.dumps({"processes": 2}))
    return run


def add_shards(run: RunFolder, number: int) -> None:
    folder = run.checkpoints / "checkpoint-4" / "global_step4"
    folder.mkdir()
    for rank in range(number):
        (folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()


def test_a_kept_global_batch_goes_on_on_other_devices(interrupted: RunFolder) -> None:
    for devices in (1, 2, 4):
        check_resume(interrupted, KEPT, devices)


def test_other_samples_a_step_are_refused(interrupted: RunFolder) -> None:
    schedule = Schedule(batch_size=1, accumulation=2, steps=8)
    check_resume(interrupted, schedule, 2)
    with pytest.raises(
        ValueError,
        match="trained on 2 devices, 4 samples a step; on 1 a step would hold 2, .*global_batch",
    ):
        check_resume(interrupted, schedule, 1)


def test_shards_of_other_devices_are_refused(interrupted: RunFolder) -> None:
    add_shards(interrupted, 2)
    check_resume(interrupted, KEPT, 2)
    with pytest.raises(
        ValueError,
        match=r"ZeRO's shards of the optimiser for 2 devices, and this run has 4. Take "
        r"2 dev",
    ):
        check_resume(interrupted, KEPT, 4)
    with pytest.raises(ValueError, match=r"from its weights, with a fresh"):
        check_resume(interrupted, KEPT, 1)
    (interrupted.checkpoints / "checkpoint-4" / "config.json").touch()
    with pytest.raises(
        ValueError,
        match=r"from its weights .model=\S+checkpoint-4 run=FOLDER., with a fresh "
        r"optimiser",
    ):
        check_resume(interrupted, KEPT, 1)


def test_a_new_folder_has_nothing_to_check(tmp_path: Path) -> None:
    check_resume(RunFolder(tmp_path / "new"), KEPT, 3)


def test_weights_left_in_shards_are_refused(tmp_path: Path) -> None:
    config = tmp_path / "zero.json"
    config.write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    with pytest.raises(
        ValueError,
        match="leaves the weights in shards; set "
        ".*stage3_gather_16bit_weights_on_model_save to true",
    ):
        start_deepspeed(str(config))


def test_a_recipe_of_older_code_goes_on(recipe: Path) -> None:
    """A key that it did not know yet counts as its default; one that it gave otherwise is
    another recipe.
    """
    main([str(recipe), "schedule.steps=2"])
    run = RunFolder(recipe.parent / "run")
    before = (run.path / "environment.json").read_bytes()
    stored = yaml.safe_load((run.path / "recipe.yaml").read_text())
    for section, key in (("hardware", "compile"), ("schedule", "keep_checkpoints")):
        del stored[section][key]
    del stored["distil"]
    (run.path / "recipe.yaml").write_text(yaml.safe_dump(stored, sort_keys=False))
    assert main([str(recipe), "schedule.steps=2"]) == 0
    with pytest.raises(
        ValueError,
        match=r"another recipe \(-\s+compile: false; \+\s+compile: "
        r"true\); give another",
    ):
        main([str(recipe), "schedule.steps=2", "hardware.compile=true"])
    assert (run.path / "environment.json").read_bytes() == before, "nothing was written over"
    stored["of_the_future"] = 1
    (run.path / "recipe.yaml").write_text(yaml.safe_dump(stored, sort_keys=False))
    with pytest.raises(
        ValueError,
        match="a run of another kind or version .*unknown key 'of_the_future'.*give another",
    ):
        run.check(load(recipe, Recipe))


def test_other_data_is_refused(recipe: Path) -> None:
    """A position would mean another sample, and the run would go on as if nothing had happened."""
    main([str(recipe), "schedule.steps=2", "schedule.save_every=1"])
    run = RunFolder(recipe.parent / "run")
    (run.final / "config.json").unlink()
    shutil.rmtree(run.final)
    shutil.rmtree(run.checkpoints / "checkpoint-2")
    data = recipe.parent / "data.json"
    records = json.loads(data.read_text())
    data.write_text(json.dumps(records[:-1]))
    with pytest.raises(
        ValueError,
        match=r"was trained on 9 samples of llava_json:.*data\.json, "
        r"which holds 8 now",
    ):
        main([str(recipe), "schedule.steps=2", "schedule.save_every=1"])
    data.write_text(json.dumps(records))
    assert main([str(recipe), "schedule.steps=2", "schedule.save_every=1"]) == 0


def test_a_deepspeed_file_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    for content in (
        "{}",
        "[]",
        '{"zero_optimization": {}}',
        '{"zero_optimization": {"stage": "three"}}',
        "{",
    ):
        (tmp_path / "zero.json").write_text(content)
        with pytest.raises(ValueError, match=r"zero\.json: .*zero_optimization"):
            start_deepspeed(str(tmp_path / "zero.json"))
