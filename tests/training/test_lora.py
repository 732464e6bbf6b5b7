"""LoRA: what is asked for trains and nothing else; the adapter is saved, resumed, and merged
exactly.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_runs import check_merged, weights

from m3.config import load
from m3.training.command import main
from m3.training.recipe.recipe import Recipe

ADAPTER = "adapter={rank: 4, alpha: 8, targets: [attention, shared_experts, routed_experts]}"


@pytest.fixture(scope="module")
def base(make_recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that starts from a trained checkpoint."""
    recipe = make_recipe(tmp_path_factory.mktemp("lora"))
    main([str(recipe), "schedule.steps=1"])
    return recipe


def adapt(recipe: Path, name: str, *overrides: str) -> Path:
    """Trains an adapter of the checkpoint; its run folder."""
    first = recipe.parent / "run" / "checkpoints" / "final"
    run = recipe.parent / name
    main(
        [
            str(recipe),
            "new_model=null",
            f"model={first}",
            f"run={run}",
            ADAPTER,
            "schedule.steps=4",
            *overrides,
        ]
    )
    return run


def test_it_trains_what_was_asked_for_and_merges_exactly(base: Path) -> None:
    run = adapt(
        base,
        "adapted",
        "parts={vision_tower: frozen, connector: 1e-3, decoder: 1e-2, router: 1e-3}",
    )
    saved = load_file(run / "checkpoints" / "adapter" / "adapter_model.safetensors")
    lora_b = {name: tensor for name, tensor in saved.items() if "lora_B" in name}
    assert sum(".experts." in name and "shared" not in name for name in lora_b) == 2, (
        "gate_up_proj and down_proj"
    )
    assert sum("shared_experts" in name for name in lora_b) == 3
    assert sum("self_attn" in name for name in lora_b) == 4
    assert all(tensor.abs().sum() > 0 for tensor in lora_b.values())
    assert any("connector" in name for name in saved) and any("router" in name for name in saved)

    before, after = weights(base.parent / "run"), weights(run)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    still = {
        name
        for name in before
        if name.startswith("model.vision_tower") or "norm" in name or "embed" in name
    }
    assert len(still) > 10
    assert not changed & (still | {"lm_head.weight"}), "a frozen weight does not change by one bit"
    for part in (
        "connector.0",
        "self_attn.q_proj",
        "experts.gate_up_proj",
        "experts.down_proj",
        "router",
        "shared_experts",
    ):
        assert any(part in name for name in changed), part

    check_merged(base.parent / "run", run)


def test_an_adapter_resumes_to_the_same_weights(base: Path) -> None:
    whole = adapt(base, "whole", "schedule.save_every=2")
    cut = base.parent / "cut"
    recipe = (whole / "recipe.yaml").read_text().replace(str(whole), str(cut))
    for name in ("checkpoint-2", "recipe.yaml", "metrics.jsonl"):
        source, target = whole / "checkpoints" / name, cut / "checkpoints" / name
        if name.startswith("checkpoint"):
            target.mkdir(parents=True)
            for file in source.iterdir():
                (target / file.name).write_bytes(file.read_bytes())
    (cut / "recipe.yaml").write_text(recipe)
    adapt(base, "cut", "schedule.save_every=2")
    first, second = weights(whole), weights(cut)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_dora_on_linear_layers(base: Path) -> None:
    run = adapt(base, "dora", "adapter={rank: 2, dora: true, targets: [attention]}")
    saved = load_file(run / "checkpoints" / "adapter" / "adapter_model.safetensors")
    assert sum("lora_magnitude_vector" in name for name in saved) == 4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["adapter={dropout: 0.05, targets: [routed_experts]}"],
            "adapter.dropout is 0.05, but adapters of routed experts",
        ),
        (
            ["adapter={dora: true, targets: [routed_experts]}"],
            "dora does not go with routed_experts",
        ),
        (["adapter={targets: []}"], "name at least one of attention"),
        (
            ["adapter={}", "parts.decoder=frozen"],
            "parts.decoder is the learning rate of the adapters",
        ),
        (["adapter={}", "parts.decoder_last_layers=1"], "last_layers does not go with an adapter"),
        (
            ["adapter={quantise: bnb-4bit}", "hardware.deepspeed=zero3.json"],
            "does not go with hardware.deepspeed",
        ),
    ],
)
def test_what_cannot_be_is_refused(overrides: list[str], message: str) -> None:
    from m3.training.command import find_recipe

    with pytest.raises(ValueError, match=message):
        load(find_recipe("tiny_all_scales"), Recipe, overrides)


def test_a_target_that_the_decoder_lacks_is_named(base: Path) -> None:
    with pytest.raises(
        ValueError,
        match="this decoder has no mlp; it has attention, shared_experts, routed_experts",
    ):
        adapt(base, "lacking", "adapter={targets: [mlp]}")
