"""Tokens that a decoder has never seen: their rows train where its tables are frozen, and what
cannot be said is named.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from training_runs import check_merged, make_new_tokens, weights

from m3.checkpoints.new_embeddings import EMBEDDING, OUTPUT
from m3.cli import main
from m3.inference.loading import load
from m3.model import M3ForConditionalGeneration
from m3.processing import M3Processor
from m3.training.loop.run_folder import RunFolder
from m3.training.setup.new_tokens import alike_rows

END = 98
LORA = "adapter={rank: 8, targets: [attention, mlp]}"
FROZEN = "parts={vision_tower: frozen, connector: 1e-2, decoder: frozen}"
ADAPTER_ALONE = "parts={vision_tower: frozen, connector: frozen, decoder: 1e-2}"


def give_mean_rows(model: Path) -> None:
    """As `m3 assemble` once left them: no record of what is new, and all rows at the mean."""
    tensors = load_file(model / "model.safetensors")
    for name in {EMBEDDING, OUTPUT} & tensors.keys():
        tensors[name][96:] = tensors[name][:96].mean(0)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((model / "config.json").read_text())
    config["new_token_ids"] = None
    (model / "config.json").write_text(json.dumps(config))


def answer(model: Path) -> str:
    loaded, processor = (
        M3ForConditionalGeneration.from_pretrained(model).eval(),
        M3Processor.from_pretrained(model),
    )
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": "<image>\nw4 w5"}], add_generation_prompt=True, tokenize=False
    )
    image = Image.fromarray(np.full((20, 30, 3), 100, np.uint8))
    inputs = processor(images=image, text=prompt, matryoshka_vis_token_scale=9)
    ids = loaded.generate(**inputs, max_new_tokens=8, do_sample=False)[
        0, inputs["input_ids"].shape[1] :
    ]
    return str(processor.tokenizer.decode(ids))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_new_tokens(tmp_path_factory.mktemp("new_tokens"))


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_new_tokens(tmp_path_factory.mktemp("tied"), tied=True)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = make_new_tokens(tmp_path_factory.mktemp("old"))
    give_mean_rows(recipe.parent / "model")
    return recipe


@pytest.mark.parametrize("base", ["made", "tied", "old"])
@pytest.mark.parametrize("parts", [[], [ADAPTER_ALONE]], ids=["connector", "alone"])
def test_an_adapter_learns_to_end_its_answer(
    base: str, parts: list[str], request: pytest.FixtureRequest
) -> None:
    recipe: Path = request.getfixturevalue(base)
    run = recipe.parent / f"lora{len(parts)}"
    assert main(["train", str(recipe), f"run={run}", LORA, *parts]) == 0
    assert answer(run / "checkpoints" / "final").endswith("<|im_end|>")
    before, after = load_file(recipe.parent / "model" / "model.safetensors"), weights(run)
    for name in {EMBEDDING, OUTPUT} & before.keys():
        moved = (before[name] != after[name]).any(1).nonzero().flatten().tolist()
        assert set(moved) <= {97, 98} and END in moved, "no other row changes by one bit"
        assert not torch.equal(after[name][97], after[name][98])
    saved = load_file(run / "checkpoints" / "adapter" / "adapter_model.safetensors")
    rows = {name: tensor for name, tensor in saved.items() if "trainable_tokens" in name}
    assert len(rows) == (1 if base == "tied" else 2)
    assert all(len(tensor) <= 2 for tensor in rows.values()), "the tables themselves are not saved"


def test_the_adapter_is_one_that_others_read(made: Path) -> None:
    run = made.parent / "read"
    assert main(["train", str(made), f"run={run}", LORA, "schedule.steps=4"]) == 0
    first = made.parent / "first" / "checkpoints"
    first.mkdir(parents=True)
    shutil.copytree(made.parent / "model", first / "final")
    check_merged(made.parent / "first", run)
    beside, _ = load(made.parent / "model", lora=run / "checkpoints" / "adapter")
    merged, _ = load(run / "checkpoints" / "final")
    ids = torch.tensor([[97, 4, 5, 98, 6, 98]])
    with torch.no_grad():
        torch.testing.assert_close(
            beside(input_ids=ids).logits, merged(input_ids=ids).logits, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("what", [LORA, FROZEN])
def test_it_resumes_to_the_same_weights(made: Path, what: str) -> None:
    number = "lora" if what == LORA else "frozen"
    whole, cut = made.parent / f"whole_{number}", made.parent / f"cut_{number}"
    short = ["schedule.steps=6", "schedule.save_every=3"]
    assert main(["train", str(made), f"run={whole}", what, *short]) == 0
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "final")
    shutil.rmtree(cut / "checkpoints" / "checkpoint-6")
    (cut / "recipe.yaml").write_text(
        (whole / "recipe.yaml").read_text().replace(str(whole), str(cut))
    )
    assert main(["train", str(made), f"run={cut}", what, *short]) == 0
    first, second = weights(whole), weights(cut)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("base", ["made", "tied", "old"])
@pytest.mark.parametrize("low", [[], ["memory=low"]], ids=["packed", "low"])
def test_a_frozen_decoder_trains_these_rows_and_nothing_else(
    base: str, low: list[str], request: pytest.FixtureRequest
) -> None:
    recipe: Path = request.getfixturevalue(base)
    run = recipe.parent / f"align{len(low)}"
    assert main(["train", str(recipe), f"run={run}", FROZEN, *low]) == 0
    before, after = load_file(recipe.parent / "model" / "model.safetensors"), weights(run)
    decoder = [name for name in before if name.startswith(("model.language_model.", "lm_head."))]
    for name in decoder:
        if name not in (EMBEDDING, OUTPUT):
            assert torch.equal(before[name], after[name]), name
            continue
        moved = (before[name] != after[name]).any(1).nonzero().flatten().tolist()
        assert set(moved) <= {97, 98}, "weight decay leaves the other rows alone too"
    assert not torch.equal(
        before[OUTPUT if OUTPUT in before else EMBEDDING][END],
        after[OUTPUT if OUTPUT in after else EMBEDDING][END],
    )
    model = M3ForConditionalGeneration.from_pretrained(run / "checkpoints" / "final").eval()
    ids = torch.tensor([[97, 4, 5, 98, 97, 6, 7, 98]])
    with torch.no_grad():
        assert int(model(input_ids=ids).logits[0, -2].argmax()) == END, (
            "behind the answer stands its end"
        )
    losses = [row["loss"] for row in RunFolder(run).read_metrics()]
    assert losses[-1] < losses[0] - 1


def test_rows_that_stay_frozen_are_named(
    old: Path, caplog: pytest.LogCaptureFixture, capsys
) -> None:
    frozen = [*(f"run={old.parent}/frozen", "schedule.steps=1"), "parts.new_tokens=frozen"]
    for what in ([LORA], ["parts.decoder=frozen"], ["parts.decoder_last_layers=1"]):
        assert main(["train", str(old), *frozen, *what, "--dry-run"]) == 0
        assert "<|im_end|> (id 98: the mean of all rows)" in capsys.readouterr().out
    assert main(["train", str(old), *frozen, LORA]) == 0
    assert any(
        "answers would never end. Give parts.new_tokens a learning rate" in record.getMessage()
        for record in caplog.records
    )
    assert main(["data", "check", str(old), *frozen, LORA]) == 1
    out = capsys.readouterr().out
    assert "unsayable" in out and "parts.new_tokens" in out
    assert main(["data", "check", str(old), *frozen, LORA, "--allow", "unsayable"]) == 0
    assert main(["data", "check", str(old)]) == 0, "the decoder trains whole"


def test_rows_that_train_are_in_the_plan(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(made), LORA, "parts.new_tokens=5e-3", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert (
        "2 rows of the frozen tables train at 0.005 (<|im_start|>, <|im_end|>)" in out
        and "WARNING" not in out
    )
    assert main(["train", str(made), "--dry-run"]) == 0
    assert "rows of the frozen tables" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["parts.new_tokens=1e-3"], "here the decoder trains whole; leave it out"),
        (
            ["parts.new_tokens=0", LORA],
            "parts.new_tokens: a learning rate must be a number above 0",
        ),
        (
            [LORA, "hardware.deepspeed=scripts/deepspeed/zero3.json"],
            "ZeRO-3 shards the tables of which 2 rows",
        ),
    ],
)
def test_what_cannot_be_is_refused(
    made: Path, overrides: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(made), "--dry-run", *overrides]) == 2
    assert message in capsys.readouterr().err


def test_a_model_without_new_tokens_takes_no_rate_for_them(
    old: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A full run leaves tokens that are new no longer."""
    run = old.parent / "full"
    assert main(["train", str(old), f"run={run}", "schedule.steps=2"]) == 0
    assert (
        main(
            [
                "train",
                str(old),
                f"model={run}/checkpoints/final",
                LORA,
                "parts.new_tokens=1e-3",
                "--dry-run",
            ]
        )
        == 2
    )
    assert "parts.new_tokens: the model has no new tokens" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_that_are_not_their_own(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    table = torch.randn(300, 16) * 0.02 + 0.05
    table[290] = table[:290].mean(0)
    table[291] = table[:290].mean(0) + 1e-5 * torch.randn(16)  # as transformers resizes embeddings
    table[292] = table[7]
    table[293] = 0
    found = alike_rows(table.to(dtype), [5, 7, 290, 291, 292, 293, 400])
    assert found == {
        7: "the row of token 292",
        290: "the mean of all rows",
        291: "the mean of all rows",
        292: "the row of token 7",
        293: "zero",
    }


def test_answers_that_are_not_taught_to_end_are_named(made: Path, tmp_path: Path, capsys) -> None:
    """The end of a turn stands outside the marks, or generation stops at something else."""
    words = "answers would never end: by the chat template {} is learned behind each, and generation stops at {}. Put"
    assert main(["data", "check", str(made)]) == 0
    for name, behind, stops in (
        ("outside", "nothing", "</s>, <|im_end|>"),
        ("other", "<|im_end|>", "</s>"),
    ):
        model = tmp_path / name
        shutil.copytree(made.parent / "model", model)
        if name == "outside":
            template = (model / "chat_template.jinja").read_text()
            inside = "{{- render(message.content) ~ '<|im_end|>' -}}\n        {%- endgeneration -%}"
            assert inside in template
            moved = "{{- render(message.content) -}}{%- endgeneration -%}{{- '<|im_end|>' -}}"
            (model / "chat_template.jinja").write_text(template.replace(inside, moved))
        else:
            (model / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
        capsys.readouterr()
        assert main(["train", str(made), f"model={model}", "--dry-run"]) == 0
        assert f"WARNING: {words.format(behind, stops)}" in capsys.readouterr().out
        assert main(["data", "check", str(made), f"model={model}"]) == 1
        assert words.format(behind, stops) in capsys.readouterr().out
        assert main(["data", "check", str(made), f"model={model}", "--allow", "endless"]) == 0
