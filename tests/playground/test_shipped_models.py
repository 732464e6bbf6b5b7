"""The shipped tiny models: loadable, small enough for git, and what their cards say of them
holds on a sample of the suite.
"""

import json
from pathlib import Path

import pytest
import torch
from datasets import load_dataset
from transformers import AutoModelForImageTextToText, AutoProcessor

import m3
import m3.auto

ROOT = Path(m3.__file__).parents[1]
LADDER = ["1@24", 1, "4@48", 4, "9@24", "9@48", 9, "36@48", 36, 144]
MODELS = {"m3-tiny-base": [144], "m3-tiny": LADDER}
FINE = ("digits", "chart", "document")
COARSE = ("scene", "position", "count")
DOCUMENTS = 40


@pytest.mark.parametrize("name", MODELS)
def test_folder_is_whole_and_small(name: str) -> None:
    folder = ROOT / "playground" / name
    files = [path for path in folder.iterdir() if path.is_file()]
    wanted = {
        "README.md",
        "config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
    }
    assert wanted <= {path.name for path in files}
    assert max(path.stat().st_size for path in files) < 16 * 2**20
    assert not {path.suffix for path in files} & {".bin", ".pt", ".pth", ".pkl"}, "safetensors only"
    processor = AutoProcessor.from_pretrained(folder)
    assert (
        processor.trained_scales
        == MODELS[name]
        == json.loads((folder / "config.json").read_text())["nesting"]["trained_scales"]
    )
    card = (folder / "README.md").read_text()
    for heading in ("Recipe", "Data", "Hardware", "Metrics", "Reproduce"):
        assert f"## {heading}" in card


@torch.no_grad()
def accuracy(name: str, families: tuple[str, ...], scale: int | str) -> float:
    """Exact match over the first documents of each family."""
    folder = ROOT / "playground" / name
    model, processor = (
        AutoModelForImageTextToText.from_pretrained(folder).eval(),
        AutoProcessor.from_pretrained(folder),
    )
    right = 0
    for family in families:
        file = ROOT / "lmms_eval_tasks" / "m3_tiny" / "data" / f"{family}.parquet"
        rows = load_dataset("parquet", data_files=str(file), split="train").select(range(DOCUMENTS))
        asked = [
            [{"type": "image"}, {"type": "text", "text": f"\n{question}"}]
            for question in rows["question"]
        ]
        texts = [
            processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
            for content in asked
        ]
        inputs = processor(images=list(rows["image"]), text=texts, matryoshka_vis_token_scale=scale)
        output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        answers = processor.batch_decode(
            output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        right += sum(
            answer.strip() == truth for answer, truth in zip(answers, rows["answer"], strict=True)
        )
    return right / (DOCUMENTS * len(families))


@pytest.mark.slow
def test_the_ladder_has_a_slope_where_detail_matters_and_none_where_it_does_not() -> None:
    assert accuracy("m3-tiny", FINE, 144) > accuracy("m3-tiny", FINE, 1) + 0.2
    assert accuracy("m3-tiny", ("scene",), 1) > 0.9


@pytest.mark.slow
def test_training_over_scales_made_the_coarse_ones_work_and_kept_the_finest() -> None:
    everything = COARSE + FINE
    assert accuracy("m3-tiny", everything, 1) > accuracy("m3-tiny-base", everything, 1) + 0.1
    assert accuracy("m3-tiny", everything, 144) > accuracy("m3-tiny-base", everything, 144) - 0.04


@pytest.mark.slow
def test_a_small_picture_is_read_better_than_few_tokens_of_a_large_one() -> None:
    """36@48 takes a quarter of the operations of 144, and 44 % of those of 4."""
    everything = COARSE + FINE
    assert accuracy("m3-tiny", everything, "36@48") > accuracy("m3-tiny", everything, 4) + 0.04
    assert accuracy("m3-tiny", COARSE, "9@24") > accuracy("m3-tiny", COARSE, 1) + 0.04
