"""A run goes on only with the data and the base that it began with; whatever else changed around
it is said.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from training_runs import weights

from m3.training.checks.fingerprints import FILE
from m3.training.command import main
from m3.training.loop.run_folder import RunFolder

SHORT = ["schedule.steps=2", "schedule.save_every=1"]
ADAPTER = "adapter={rank: 2, targets: [attention]}"


def cut(run: Path) -> None:
    """As if the run had been killed between its two steps."""
    shutil.rmtree(run / "checkpoints" / "final")
    shutil.rmtree(run / "checkpoints" / "checkpoint-2")


def rewrite(change: Callable[[list], list]) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        records = json.loads((folder / "data.json").read_text())
        (folder / "data.json").write_text(json.dumps(change(records)))

    return run


def other_answer(records: list) -> list:
    records[3]["conversations"][1]["value"] = "9"
    return records


def other_picture(folder: Path) -> None:
    Image.fromarray(np.zeros((24, 24, 3), np.uint8)).save(folder / "5.png")


def other_processor(folder: Path) -> None:
    path = folder / "tokenizer" / "preprocessor_config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"image_mean": [0.4, 0.5, 0.5]}))


def other_held_out(folder: Path) -> None:
    rewrite_held = json.loads((folder / "held.json").read_text())
    (folder / "held.json").write_text(json.dumps(rewrite_held[::-1]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            rewrite(lambda records: records[::-1]),
            r"data\.sources\.0 \(llava_json:.*data\.json\): "
            r"its records \(texts",
        ),
        (rewrite(other_answer), r"data\.sources\.0 .*its records"),
        (
            other_picture,
            r"data\.sources\.0 \(llava_json:[^;]*\): samples or pictures behind the "
            r"same names",
        ),
        (other_held_out, r"Changed: held_out\.source \(llava_json:.*held\.json\): its records"),
        (
            other_processor,
            r"Changed: new_model\.tokenizer \(.*\): preprocessor_config\.json\. Put "
            r"it back, or begin",
        ),
    ],
)
def test_what_changed_is_named_and_refused(
    change: Callable[[Path], None], words: str, recipe: Path
) -> None:
    folder = recipe.parent
    shutil.copy(folder / "data.json", folder / "held.json")
    held = f"held_out={{every: 2, samples: 2, source: {{path: {folder}/held.json, image_folder: {folder}}}}}"
    command = [str(recipe), *SHORT, held]
    assert main(command) == 0
    cut(folder / "run")
    kept = {file: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    kept |= {file: file.read_bytes() for file in (folder / "tokenizer").iterdir()}
    change(folder)
    with pytest.raises(ValueError, match=words):
        main(command)
    for file, content in kept.items():
        file.write_bytes(content)
    assert main(command) == 0, "put back, it goes on"


def test_a_rewritten_file_with_the_same_content_goes_on(recipe: Path) -> None:
    assert main([str(recipe), *SHORT]) == 0
    first = weights(recipe.parent / "run")
    cut(recipe.parent / "run")
    for file in [*recipe.parent.glob("*.png"), recipe.parent / "data.json"]:
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content)
    assert main([str(recipe), *SHORT]) == 0
    assert all(
        (first[name] == tensor).all() for name, tensor in weights(recipe.parent / "run").items()
    )


@pytest.mark.parametrize("adapter", [[], [ADAPTER]], ids=["full", "adapter"])
def test_another_base_is_refused(adapter: list[str], recipe: Path) -> None:
    folder = recipe.parent
    assert main([str(recipe), "schedule.steps=1", f"run={folder}/first"]) == 0
    base = folder / "first" / "checkpoints" / "final"
    command = [str(recipe), "new_model=null", f"model={base}", *SHORT, *adapter]
    assert main(command) == 0
    cut(folder / "run")
    tensors = load_file(base / "model.safetensors")
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    tensors[name][3, 3] += 1e-3
    kept = (base / "model.safetensors").read_bytes()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"Changed: model \(.*final\): its weights\. Put it back"):
        main(command)
    (base / "model.safetensors").write_bytes(kept)
    template = base / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    with pytest.raises(ValueError, match=r"model \(.*final\): chat_template\.jinja\. Put it back"):
        main(command)


def test_a_run_that_lost_its_fingerprints_goes_on_with_a_notice(
    recipe: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert main([str(recipe), *SHORT]) == 0
    cut(recipe.parent / "run")
    (recipe.parent / "run" / FILE).unlink()
    assert main([str(recipe), *SHORT]) == 0
    assert "has checkpoints but no fingerprints.json" in caplog.text
    assert (recipe.parent / "run" / FILE).exists()


def test_other_versions_are_said(recipe: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main([str(recipe), *SHORT]) == 0
    run = RunFolder(recipe.parent / "run")
    cut(run.path)
    stored = json.loads((run.path / FILE).read_text())
    stored["surroundings"]["packages"]["torch"] = "1.0"
    (run.path / FILE).write_text(json.dumps(stored))
    assert main([str(recipe), *SHORT]) == 0
    assert "these are not as when it began: packages: torch 1.0 -> " in caplog.text
