"""QLoRA: adapters learn on a packed base that does not change by one bit; the end is the plain
base with them merged in.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_runs import check_merged, make_new_tokens, weights

from m3.checkpoints.new_embeddings import EMBEDDING, OUTPUT
from m3.config import load
from m3.training.command import find_recipe, main
from m3.training.loop.run_folder import RunFolder
from m3.training.recipe.recipe import Recipe
from m3.training.setup.build import build
from m3.training.setup.lora import add_lora, lora_config
from m3.training.setup.parameter_groups import apply_parts
from m3.training.setup.resolved import ResolvedRun

pytest.importorskip("bitsandbytes")

TEXT = "new_model.config.text_config"
WIDE = [f"{TEXT}.hidden_size=64", f"{TEXT}.intermediate_size=64"]
"""bitsandbytes' kernels for CPUs take widths that are multiples of 64."""


@pytest.fixture(scope="module")
def base(make_recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that starts from a trained checkpoint, wide enough to be packed."""
    recipe = make_recipe(tmp_path_factory.mktemp("quantised"))
    main([str(recipe), "schedule.steps=1", *WIDE])
    return recipe


def overrides(recipe: Path, name: str, quantise: str, targets: str) -> list[str]:
    first = recipe.parent / "run" / "checkpoints" / "final"
    return [
        "new_model=null",
        f"model={first}",
        f"run={recipe.parent}/{name}",
        f"adapter={{rank: 4, targets: [{targets}], quantise: {quantise}}}",
        "parts={vision_tower: frozen, connector: 1e-3, decoder: 1e-2}",
        "schedule.steps=4",
    ]


@pytest.mark.parametrize(
    ("quantise", "targets"),
    [
        ("bnb-4bit", "attention, shared_experts"),
        ("bnb-8bit", "attention, shared_experts, routed_experts"),
    ],
)
def test_a_run_trains_the_adapter_and_merges_it_into_the_plain_base(
    base: Path, quantise: str, targets: str
) -> None:
    main([str(base), *overrides(base, quantise, quantise, targets)])
    run = base.parent / quantise
    assert len(RunFolder(run).read_metrics()) == 4
    saved = load_file(run / "checkpoints" / "adapter" / "adapter_model.safetensors")
    lora_b = [tensor for name, tensor in saved.items() if "lora_B" in name]
    assert len(lora_b) == 7 + 2 * ("routed" in targets)
    assert all(tensor.abs().sum() > 0 for tensor in lora_b)

    before, after = weights(base.parent / "run"), weights(run)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert any("self_attn.q_proj" in name for name in changed) and any(
        "connector" in name for name in changed
    )
    adapted_parts = (
        "self_attn",
        "shared_experts",
        "connector",
        *([".experts."] if "routed" in targets else []),
    )
    assert all(any(part in name for part in adapted_parts) for name in changed)

    check_merged(base.parent / "run", run)


def test_the_packed_base_stays_to_the_bit(base: Path) -> None:
    recipe = load(base, Recipe, overrides(base, "bits", "bnb-4bit", "attention, shared_experts"))
    resolved = ResolvedRun(recipe)
    model, _ = build(resolved)
    rates = apply_parts(model, recipe.parts)
    assert not any("q_proj" in name for name in rates), "what is packed has no gradient"
    adapted, trained = add_lora(model, lora_config(resolved), rates, seed=0)
    before = {name: parameter.detach().clone() for name, parameter in adapted.named_parameters()}
    assert sum(parameter.dtype == torch.uint8 for parameter in before.values()) == 7 + 2, (
        "linear layers and the experts"
    )
    parameters = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
    ids, losses = torch.arange(4, 20)[None], []
    adapted.train()
    for _ in range(4):
        loss = adapted(input_ids=ids, labels=ids).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    for name, parameter in adapted.named_parameters():
        if name not in trained:
            assert torch.equal(parameter, before[name]), name
    moved = [name for name in trained if not torch.equal(adapted.get_parameter(name), before[name])]
    assert sum("lora_B" in name for name in moved) == 7


@pytest.mark.skipif(torch.accelerator.is_available(), reason="it is refused on CPUs alone")
def test_held_out_samples_are_refused_where_they_would_spoil_the_gradients(base: Path) -> None:
    held_out = (
        f"held_out={{every: 2, samples: 4, source: {{path: {base.parent}/data.json, image_folder: "
        f"{base.parent}}}}}"
    )
    wanted = overrides(base, "held", "bnb-4bit", "attention, shared_experts")
    with pytest.raises(
        ValueError,
        match="held_out and evaluation do not go with adapter.quantise: bnb-4bit on a CPU",
    ):
        main([str(base), *wanted, held_out])


def test_packed_experts_take_no_adapter() -> None:
    wanted = "adapter={targets: [attention, routed_experts], quantise: bnb-4bit}"
    with pytest.raises(
        ValueError, match="leave routed_experts out of targets, or take quantise: bnb-8bit"
    ):
        load(find_recipe("tiny_all_scales"), Recipe, [wanted])


@pytest.mark.parametrize("quantise", ["bnb-4bit", "bnb-8bit"])
def test_rows_of_new_tokens_train_beside_it(quantise: str, tmp_path: Path) -> None:
    recipe = make_new_tokens(tmp_path, hidden_size=64, intermediate_size=64)
    adapter = f"adapter={{rank: 4, targets: [attention, mlp], quantise: {quantise}}}"
    main([str(recipe), adapter, "schedule.steps=4"])
    before, after = load_file(tmp_path / "model" / "model.safetensors"), weights(tmp_path / "run")
    for name in (EMBEDDING, OUTPUT):
        assert (before[name] != after[name]).any(1).nonzero().flatten().tolist() == [97, 98]
