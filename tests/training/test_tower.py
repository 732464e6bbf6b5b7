"""The tower stage on a handful of drawn pictures: it learns, resumes from nothing, and leaves a
plain vision model.
"""

from pathlib import Path

import pytest
import torch
from transformers import AutoImageProcessor, AutoModel, SiglipVisionConfig

from m3.data.synthetic import command as draw
from m3.training.command import main
from m3.training.loop.patch_labels import PatchLabeller
from m3.training.loop.run_folder import RunFolder

RECIPE = """
run: {folder}/run
data: {folder}/data
vision_config: {{model_type: siglip_vision_model, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1,
  num_attention_heads: 2, image_size: 96, patch_size: 8, vision_use_head: false}}
learning_rate: 1e-2
schedule: {{batch_size: 4, steps: 20, log_every: 5, save_every: 10}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures per family."""
    made = tmp_path_factory.mktemp("tower")
    draw.main(["--out", str(made / "data"), "--train", "4", "--test", "0", "--workers", "1"])
    (made / "recipe.yaml").write_text(RECIPE.format(folder=made))
    return made


def test_it_learns_and_leaves_a_plain_vision_model(folder: Path) -> None:
    assert main([str(folder / "recipe.yaml")]) == 0
    rows = RunFolder(folder / "run").read_metrics()
    assert [row["step"] for row in rows] == [5, 10, 15, 20]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert 0 <= rows[-1]["slot_accuracy"] <= 1
    final = folder / "run" / "checkpoints" / "final"
    encoder = AutoModel.from_pretrained(final)
    assert type(encoder).__name__ == "SiglipVisionModel"
    assert AutoImageProcessor.from_pretrained(final, backend="pil").size["height"] == 96
    assert main([str(folder / "recipe.yaml")]) == 0, "a finished run is left alone"


def test_missing_pictures_say_how_to_make_them(folder: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "empty" / "suite.json").write_text((folder / "data" / "suite.json").read_text())
    with pytest.raises(ValueError, match="no train/.*parquet; make them with `m3 data tiny --out"):
        main([str(folder / "recipe.yaml"), f"data={folder}/empty", f"run={folder}/other"])
    with pytest.raises(ValueError, match="m3 data tiny --out"):
        main([str(folder / "recipe.yaml"), f"data={folder}/nowhere", f"run={folder}/other"])


def test_a_share_of_a_step_is_one_step(folder: Path) -> None:
    """Fewer pictures than a step takes are filled up, not read three times over as Trainer
    would.
    """
    short = [
        "schedule.steps=null",
        "schedule.epochs=0.01",
        "schedule.batch_size=32",
        "schedule.log_every=1",
    ]
    main([str(folder / "recipe.yaml"), *short, f"run={folder}/short"])
    assert [row["step"] for row in RunFolder(folder / "short").read_metrics()] == [1]


def test_what_a_tower_does_not_read_is_refused(folder: Path) -> None:
    for key in ("attention=sdpa", "liger=true"):
        with pytest.raises(
            ValueError, match=f"hardware.{key.split('=')[0]} is of a whole model's recipe"
        ):
            main([str(folder / "recipe.yaml"), f"hardware.{key}", f"run={folder}/none"])


def test_plain_ground_weighs_little_and_is_left_out_of_accuracy() -> None:
    torch.manual_seed(0)
    small = SiglipVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        vision_use_head=False,
    )
    labeller = PatchLabeller(small, classes=3, slots=2)
    pixels, slot = torch.randn(2, 3, 16, 16), torch.zeros(2, 4, dtype=torch.long)
    ground = labeller(pixels, torch.zeros(2, 4, dtype=torch.long), slot)
    assert float(ground.class_accuracy) == 0
    things = labeller(pixels, torch.full((2, 4), 2), slot)
    assert 0 <= float(things.class_accuracy) <= 1
    assert torch.isfinite(things.loss)
