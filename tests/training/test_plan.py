"""What a run says before it starts: from the configuration alone, for models whose weights are
not here.
"""

import re
from dataclasses import replace

import pytest

from m3.config import load
from m3.hardware import ACCELERATORS, peak_flops
from m3.training.checks.dry_run import count_parameters, plan
from m3.training.checks.throughput import meter
from m3.training.command import find_recipe, main, read_recipes
from m3.training.recipe.recipe import Recipe
from m3.training.setup.resolved import ResolvedRun


@pytest.mark.parametrize(
    ("name", "billions", "trained"),
    [
        ("llava_1_5_7b_m3", 7.063, 7.063),  # as published: 7.06 B
        ("llava_1_5_7b_m3_lora", 7.383, 0.644),
        ("llava_next_7b_m3", 7.063, 7.063),
        ("aria_25b_m3_lora", 25.461, 0.174),  # Aria: 25.3 B
    ],
)
def test_parameters_of_models_that_are_not_here(name: str, billions: float, trained: float) -> None:
    recipe = load(find_recipe(name), Recipe)
    counts = count_parameters(ResolvedRun(recipe)).values()
    assert sum(count.total for count in counts) / 1e9 == pytest.approx(billions, abs=2e-3)
    assert sum(count.trained for count in counts) / 1e9 == pytest.approx(trained, abs=2e-3)


def test_the_plan_names_the_batch_and_its_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["llava_1_5_7b_m3", "--dry-run", "--devices", "16"]) == 0
    printed = capsys.readouterr().out
    assert "128 samples = 16 devices x 4 x 2 micro-steps; 1 epochs" in printed
    assert "5 sequences, about 1366 tokens" in printed
    with pytest.raises(
        ValueError, match="a global batch of 128 is no multiple of 3 devices x batch_size 4"
    ):
        main(["llava_1_5_7b_m3", "--dry-run", "--devices", "3"])


def test_what_is_missing_is_said() -> None:
    with pytest.raises(
        ValueError, match="has no config.json, and the recipe names no architecture"
    ):
        main(["llava_1_5_7b_m3", "architecture=null", "--dry-run"])
    with pytest.raises(ValueError, match="no 'llava_8b'; there are aria_25b, llava_1_5_7b"):
        main(["llava_1_5_7b_m3", "architecture=llava_8b", "--dry-run"])


def test_sharding_lowers_the_estimate_of_memory() -> None:
    found = {}
    for stage in ("zero2", "zero3"):
        recipe = load(
            find_recipe("llava_1_5_7b_m3"),
            Recipe,
            [f"hardware.deepspeed=scripts/deepspeed/{stage}.json"],
        )
        line = next(
            line
            for line in plan(ResolvedRun(recipe, devices=8)).splitlines()
            if line.startswith("memory")
        )
        found[stage] = float(line.split()[2])
    assert found["zero3"] < 20 < found["zero2"]


def memory_lines(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, str]:
    """Of a dry run on eight devices: what stands behind each way of sharding."""
    assert main(["llava_1_5_7b_m3", "--dry-run", "--devices", "8", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    chosen = [line for line in lines if line.startswith(("memory", "  ZeRO", "time"))]
    return {
        line.strip().split(":")[0].split()[0 if line[0] == "m" else -1]: line for line in chosen
    }


def test_several_devices_are_told_what_each_launcher_needs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """16 bytes a parameter, 14 of them or all dealt to eight devices, or none on the device."""
    lines = memory_lines(capsys)
    assert "about 106.75 GiB a device, nothing sharded (estimate)" in lines["memory"]
    assert "about 26.17 GiB a device" in lines["(ZERO=zero2)"]
    assert "about 14.66 GiB a device" in lines["(ZERO=zero3)"]
    offload = lines["(ZERO=zero3_offload)"]
    assert "about 2.33 GiB a device, and 105.25 of the machine in all" in offload
    offloaded = memory_lines(capsys, "hardware.deepspeed=scripts/deepspeed/zero3_offload.json")
    assert "about 2.33 GiB a device, and 105.25 of the machine in all" in offloaded["memory"]
    assert pytest.approx(105.25, abs=0.01) == 7.063e9 * 16 / 2**30


def test_time_and_fit_are_told_for_an_accelerator_by_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["llava_1_5_7b_m3", "--dry-run", "--devices", "8"]) == 0
    assert "--accelerator H100 estimates it for one that is" in capsys.readouterr().out
    lines = memory_lines(capsys, "--accelerator", "H100")
    assert "DOES NOT FIT" in lines["memory"] and "fits" in lines["(ZERO=zero3)"]
    assert main(["llava_1_5_7b_m3", "--dry-run", "--devices", "8", "--accelerator", "H100"]) == 0
    printed = capsys.readouterr().out
    seconds = re.search(r"about ([\d.]+) s a step \(at 40% of the peak of H100 SXM", printed)
    flops = re.search(r"tokens, ([\de.+]+) FLOP", printed)
    assert seconds is not None and flops is not None
    assert float(seconds[1]) == pytest.approx(
        float(flops[1]) / (8 * 0.4 * ACCELERATORS["H100"].flops), rel=5e-3
    )


def test_a_recipe_is_resolved_once() -> None:
    run = ResolvedRun(load(find_recipe("llava_1_5_7b_m3"), Recipe), devices=16)
    assert (run.accumulation, run.step_samples, run.highest_rate) == (2, 128, 2e-5)
    assert run.config.nesting.trained_scales == (1, 9, 36, 144, 576)
    changed = run.config
    changed.new_token_ids = [3]
    assert run.config.new_token_ids is None, "models write into copies"


def test_the_next_stage_of_a_chain_begins_with_what_this_one_leaves() -> None:
    context = "context={positions: 8192, rope_theta: 1e6}"
    recipe = load(find_recipe("llava_1_5_7b_m3"), Recipe, [context])
    run = ResolvedRun(recipe)
    given = run.config_left
    given.new_token_ids = [3]
    following = ResolvedRun(replace(recipe, context=None, architecture=None), before=given)
    assert following.config.text_config.max_position_embeddings == 8192
    assert following.config.new_token_ids == [3]
    assert following.config_left.new_token_ids is None, "its tables train, so they are not new"
    assert given.new_token_ids == [3]


def test_every_chain_decodes() -> None:
    assert [recipe.run for recipe in read_recipes(find_recipe("qwen3_moe_m3"), [])] == [
        f"runs/qwen3_moe_m3/{name}" for name in ("align", "pretrain", "all_scales")
    ]


def test_peaks_are_found_by_the_device_name() -> None:
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("some CPU") is None
    recipe = load(find_recipe("llava_1_5_7b_m3"), Recipe)
    found = meter(ResolvedRun(recipe).config, "NVIDIA H100 80GB HBM3")
    assert found is not None
    assert found.flops(1000, 0) == pytest.approx(6 * 1000 * 6.607e9, rel=1e-3), (
        "Vicuna-7B without its embedding table"
    )
    assert found.flops(0, 1) > 3 * 2 * 577 * 0.3e9
    assert meter(ResolvedRun(recipe).config, "some CPU") is None


@pytest.mark.parametrize("name", ["llava_1_5_7b_m3", "llava_next_7b_m3", "aria_25b_m3"])
def test_ladders_of_resolutions_in_the_recipes_can_be_planned(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    comment = re.search(r"# With resolutions.*: (--\S+) (\S+)", find_recipe(name).read_text())
    assert comment is not None
    assert main([name, "--dry-run", "--devices", "8", comment[1], comment[2]]) == 0
    drawn = {"aria_25b_m3": 4}.get(name, len(comment[2].split(",")))  # it draws a sandwich
    assert f"per sample      {drawn} sequences" in capsys.readouterr().out
