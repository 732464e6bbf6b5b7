"""Stages: what a part's rate, its last layers and the router's rate do; chains; what a run says
before it starts.
"""

from pathlib import Path

import pytest
import torch
from tiny_models import make_model
from training_runs import weights

from m3.training.command import main
from m3.training.recipe.sections import Parts
from m3.training.setup.parameter_groups import apply_parts

LAYER = "model.language_model.layers"


def test_the_last_layers_alone_and_the_router_at_its_own_rate() -> None:
    model = make_model(decoder="aria_text")
    rates = apply_parts(
        model,
        Parts(
            vision_tower=1e-5,
            connector=1e-3,
            decoder=1e-4,
            router="frozen",
            vision_last_layers=1,
            decoder_last_layers=1,
        ),
    )
    assert {name: p.requires_grad for name, p in model.named_parameters()} == {
        name: name in rates for name, _ in model.named_parameters()
    }
    assert {name.split(".")[3] for name in rates if name.startswith(LAYER)} == {"1"}
    assert not any("router" in name or "lm_head" in name or "embed" in name for name in rates)
    tower = [name for name in rates if name.startswith("model.vision_tower")]
    assert tower and all(".layers.1." in name for name in tower)
    assert {rates[name] for name in tower} == {1e-5}


@pytest.mark.parametrize(
    ("decoder", "parts", "message"),
    [
        ("llama", {"router": 1e-4}, "the decoder is dense and has none"),
        (
            "aria_text",
            {"decoder_last_layers": 3},
            "the last 3 layers of decoder are to train, but it has 2",
        ),
        (
            "aria_text",
            {"vision_tower": "frozen", "connector": "frozen", "decoder": "frozen"},
            "every part is frozen",
        ),
    ],
)
def test_what_cannot_be_is_refused(decoder: str, parts: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply_parts(
            make_model(decoder=decoder),
            Parts(**{"vision_tower": 1.0, "connector": 1.0, "decoder": 1.0} | parts),
        )


STAGES = """
stages:
  - {name: align, parts: {vision_tower: frozen, decoder: frozen}, matryoshka_vis_token_scale: [36]}
  - {name: pretrain, parts: {vision_tower: frozen}, matryoshka_vis_token_scale: [36]}
  - {name: all_scales, matryoshka_vis_token_scale: [1, 4, 36]}
"""


def test_three_stages_by_one_command(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(recipe), "schedule.steps=1"])
    first = recipe.parent / "run" / "checkpoints" / "final"
    chain = recipe.parent / "chain.yaml"
    text = (
        recipe.read_text().replace(f"run: {recipe.parent}/run", f"run: {recipe.parent}/chain")
        + STAGES
    )
    chain.write_text(text + f"model: {first}\nreset_connector: true\n")
    override = ["new_model=null", "schedule.steps=3"]
    assert main([str(chain), "--dry-run", *override]) == 0
    assert capsys.readouterr().out.count("global batch") == 3
    assert not (recipe.parent / "chain").exists(), "a dry run writes nothing"
    assert main([str(chain), *override]) == 0
    before = weights(recipe.parent / "run")
    stages = [
        weights(recipe.parent / "chain" / name) for name in ("align", "pretrain", "all_scales")
    ]
    moved = [
        {name for name in old if not torch.equal(old[name], new[name])}
        for old, new in zip([before, *stages[:-1]], stages, strict=True)
    ]
    assert moved[0] == {name for name in before if name.startswith("model.connector")}
    assert any(name.startswith(LAYER) for name in moved[1]) and not any(
        "vision" in name for name in moved[1]
    )
    assert any("vision" in name for name in moved[2])
    assert (
        'trained_scales": [\n      1,\n      4,\n      36'
        in (
            recipe.parent / "chain" / "all_scales" / "checkpoints" / "final" / "config.json"
        ).read_text()
    )
    files = {
        path: path.stat().st_mtime_ns
        for path in (recipe.parent / "chain").rglob("model.safetensors")
    }
    assert main([str(chain), *override]) == 0, "finished stages are left alone"
    assert all(path.stat().st_mtime_ns == time for path, time in files.items())


def test_stages_need_names_and_a_folder(recipe: Path) -> None:
    chain = recipe.parent / "chain.yaml"
    chain.write_text(recipe.read_text() + "stages: [{name: one}, {name: one}]\n")
    with pytest.raises(
        ValueError,
        match=r"each has a name of its own, got the names \['one', "
        r"'one'\]",
    ):
        main([str(chain)])
    chain.write_text(recipe.read_text().replace("run:", "rum:") + "stages: [{name: one}]\n")
    with pytest.raises(ValueError, match="needs `run`"):
        main([str(chain)])


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("model: elsewhere", "stage two: model is what the stage before leaves"),
        ("new_model: null", "stage two: new_model is what the stage before leaves"),
        ("reset_connector: true", "stage two: reset_connector"),
        ("run: elsewhere", "stage two: run is the chain's and the stage's name"),
    ],
)
def test_a_stage_that_says_what_its_place_decides_is_refused(
    recipe: Path, second: str, message: str
) -> None:
    chain = recipe.parent / "chain.yaml"
    chain.write_text(recipe.read_text() + f"stages: [{{name: one}}, {{name: two, {second}}}]\n")
    with pytest.raises(ValueError, match=message):
        main([str(chain), "--dry-run"])


def test_stages_are_a_list_of_mappings(recipe: Path) -> None:
    chain = recipe.parent / "chain.yaml"
    for stages in ("{one: {}}", "[one]", "3"):
        chain.write_text(recipe.read_text() + f"stages: {stages}\n")
        with pytest.raises(
            ValueError, match="stages: expected a list in which each has a name of its own"
        ):
            main([str(chain)])


def test_a_finished_or_begun_run_can_be_protected(recipe: Path) -> None:
    main([str(recipe), "schedule.steps=1"])
    with pytest.raises(ValueError, match="holds a run already and --resume never"):
        main([str(recipe), "schedule.steps=1", "--resume", "never"])
