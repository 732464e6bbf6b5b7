"""A SigLIP pair and a Qwen3-MoE become one model that trains and answers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_tools import make_tokenizer
from PIL import Image
from safetensors.torch import load_file
from tiny_models import DECODERS, make_config
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    CLIPImageProcessorPil,
    Gemma2Config,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from m3.checkpoints.assemble import Choices, assemble, has_class_token
from m3.checkpoints.convert import convert
from m3.checkpoints.new_embeddings import EMBEDDING, OUTPUT, drawn_rows
from m3.cli import main
from m3.model import M3Config, M3ForConditionalGeneration
from m3.processing import M3Processor

PIXELS = {"height": 48, "width": 48}
RECIPE = """
run: {folder}/run
model: {folder}/model
matryoshka_vis_token_scale: [1, 9, 144]
parts: {{vision_tower: frozen, connector: 1e-2, decoder: 1e-2}}
data: {{sources: [{{path: {folder}/data.json, image_folder: {folder}}}], pack_length: 512}}
schedule: {{batch_size: 2, steps: 1, log_every: 1, save_every: 1}}
optimiser: {{warmup: 0, schedule: constant}}
hardware: {{threads: 1}}
"""


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole SigLIP: the vision encoder is taken out of it."""
    folder = tmp_path_factory.mktemp("vision")
    sizes = {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    vision = {**sizes, "image_size": 48, "patch_size": 4}
    SiglipModel(
        SiglipConfig(vision_config=vision, text_config={**sizes, "vocab_size": 50})
    ).save_pretrained(folder)
    SiglipImageProcessorPil(size=PIXELS).save_pretrained(folder)
    return folder


def make_decoder(folder: Path, kind: str, tied: bool = False) -> Path:
    """A random decoder as the hub has them, of 96 words and no chat format."""
    config = make_config(kind).text_config
    config.tie_word_embeddings = tied
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    make_tokenizer(96).save_pretrained(folder)
    return folder


def test_an_assembled_model_trains_a_step_and_answers(vision: Path, tmp_path: Path) -> None:
    decoder = make_decoder(tmp_path / "decoder", "qwen3_moe")
    assert "model.layers.0.mlp.experts.3.up_proj.weight" in load_file(decoder / "model.safetensors")
    arguments = ["--vision", str(vision), "--decoder", str(decoder), "--connector", "mlp2x_gelu"]
    arguments += ["--nesting", "grid_pool", "--matryoshka_vis_token_scale", "1,9,36,144"]
    assert main(["assemble", str(tmp_path / "model"), *arguments]) == 0
    records = []
    for n in range(2):
        Image.fromarray(np.full((20, 30, 3), 100 * n, np.uint8)).save(tmp_path / f"{n}.png")
        talk = [{"from": "human", "value": "<image>\nw4 w5"}, {"from": "gpt", "value": f"w{6 + n}"}]
        records.append({"id": str(n), "image": f"{n}.png", "conversations": talk})
    (tmp_path / "data.json").write_text(json.dumps(records))
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(folder=tmp_path))
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 0
    final = tmp_path / "run" / "checkpoints" / "final"
    before, after = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "model", final)
    )
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert (
        "model.language_model.layers.0.mlp.experts.gate_up_proj" in moved
        and "model.connector.0.weight" in moved
    )
    assert not any(name.startswith("model.vision_tower.") for name in moved)
    model, processor = (
        M3ForConditionalGeneration.from_pretrained(final),
        M3Processor.from_pretrained(final),
    )
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "w4"}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert prompt == "<|im_start|>user\n<image>\nw4<|im_end|>\n<|im_start|>assistant\n"
    inputs = processor(images=tmp_path / "0.png", text=prompt, matryoshka_vis_token_scale=9)
    answer = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert answer.shape[1] > inputs["input_ids"].shape[1]
    assert model.generation_config.eos_token_id == [
        2,
        processor.tokenizer.get_vocab()["<|im_end|>"],
    ]


@pytest.mark.parametrize(
    ("connector", "decoder"),
    [
        *(("linear", decoder) for decoder in DECODERS),
        ("resampler", "qwen3_moe"),
        ("pixel_shuffle", "qwen3"),
    ],
)
def test_every_part_is_where_it_came_from(
    connector: str, decoder: str, vision: Path, tmp_path: Path
) -> None:
    made = make_decoder(tmp_path / "decoder", decoder, tied=decoder == "qwen3")
    nesting, queries = ("query_prefix", 16) if connector == "resampler" else ("grid_pool", None)
    assemble(vision, made, tmp_path / "model", Choices(connector, nesting, queries))
    model, info = M3ForConditionalGeneration.from_pretrained(
        tmp_path / "model", output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tower = AutoModel.from_pretrained(vision).vision_model
    for name, tensor in tower.state_dict().items():
        assert torch.equal(model.model.vision_tower.state_dict()[name], tensor), name
    causal = AutoModelForCausalLM.from_pretrained(made)
    for name, tensor in causal.model.state_dict().items():
        ours = model.model.language_model.state_dict()[name]
        assert torch.equal(ours[: len(tensor)], tensor), name
    for ours, theirs in (
        (model.get_input_embeddings().weight, causal.get_input_embeddings().weight),
        (model.lm_head.weight, causal.lm_head.weight),
    ):
        assert len(ours) == 99 and len(theirs) == 96
        assert len(ours[96:].unique(dim=0)) == 3, "rows at the mean itself would tie for ever"
        far = (ours - theirs.mean(0)).norm(dim=1)
        assert far[:96].min() * 0.5 < far[96:].min() and far[96:].max() < far[:96].max() * 2
    assert model.config.new_token_ids == [97, 98], "the image token is no token of text"
    assert model.config.image_token_id == 96 and not model.config.drop_class_token
    assert all(
        parameter.abs().sum() > 0
        for name, parameter in model.model.connector.named_parameters()
        if "bias" not in name
    )


def test_new_rows_are_drawn_like_the_old() -> None:
    """Their mean and covariance are those of the table, which here is narrow, long and far from
    zero.
    """
    torch.manual_seed(0)
    table = (
        torch.randn(5000, 3) @ torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.2, 0.0], [0.0, 0.0, 2.0]]) + 5
    )
    edits = drawn_rows(range(5000, 9000), 5000, 9000)
    drawn = edits[OUTPUT](table)[5000:]
    torch.testing.assert_close(drawn.mean(0), table.mean(0), atol=0.1, rtol=0)
    torch.testing.assert_close(drawn.T.cov(), table.T.cov(), atol=0.25, rtol=0.05)
    assert torch.equal(edits[EMBEDDING](table)[:5000], table)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_new_rows_may_stand_within_the_table(dtype: torch.dtype) -> None:
    """Decoders whose tables are longer than their tokenizers; the rows that no token uses take
    no part.
    """
    table = torch.randn(40, 8).to(dtype)
    table[30:] = 1000
    edit = drawn_rows([30, 31, 32], 30, 40, seed=1)[OUTPUT]
    grown = edit(table)
    assert (
        grown.dtype == dtype
        and torch.equal(grown[:30], table[:30])
        and torch.equal(grown[33:], table[33:])
    )
    assert grown[30:33].abs().max() < 10 and len(grown[30:33].unique(dim=0)) == 3
    assert torch.equal(grown, edit(table)) and edit(table.to("meta")).shape == table.shape
    other = drawn_rows([30, 31, 32], 30, 40, seed=2)[OUTPUT](table)
    assert not torch.equal(grown[30:33], other[30:33])


def test_the_same_seed_draws_the_same_connector(vision: Path, tmp_path: Path) -> None:
    decoder = make_decoder(tmp_path / "decoder", "llama")
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        assemble(vision, decoder, tmp_path / name, Choices(seed=seed))
    weights = {
        name: load_file(tmp_path / name / "model.safetensors") for name in ("one", "same", "other")
    }
    drawn = "model.connector.2.weight"
    assert torch.equal(weights["one"][drawn], weights["same"][drawn])
    assert not torch.equal(weights["one"][drawn], weights["other"][drawn])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("clip_vision_model", True),
        ("dinov2", True),
        ("siglip_vision_model", False),
        ("siglip2_vision_model", False),
    ],
)
def test_class_tokens_are_found_out(kind: str, expected: bool) -> None:
    assert has_class_token(make_config(vision=kind).vision_config) is expected


def test_what_is_no_decoder_is_refused(vision: Path, tmp_path: Path) -> None:
    decoder = make_decoder(tmp_path / "decoder", "llama")
    CLIPImageProcessorPil(size={"shortest_edge": 48}).save_pretrained(decoder)
    with pytest.raises(ValueError, match="no vision encoder"):
        assemble(decoder, decoder, tmp_path / "model", Choices())
    with pytest.raises(ValueError, match="no causal decoder"):
        assemble(vision, vision, tmp_path / "model", Choices())
    assert not (tmp_path / "model").exists()


def test_a_decoder_that_changes_its_logits_is_refused(vision: Path, tmp_path: Path) -> None:
    config = Gemma2Config(
        vocab_size=96,
        hidden_size=32,
        num_hidden_layers=1,
        intermediate_size=32,
        num_attention_heads=2,
    )
    config.save_pretrained(tmp_path / "decoder")
    with pytest.raises(
        ValueError,
        match="gemma2 changes its logits behind lm_head .*'final_logit_softcapping': "
        "30.0.*which M3",
    ):
        assemble(vision, tmp_path / "decoder", tmp_path / "model", Choices())


def test_scales_that_are_no_numbers_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "assemble",
        "x",
        "--vision",
        "v",
        "--decoder",
        "d",
        "--matryoshka_vis_token_scale",
        "1,x",
    ]
    assert main(arguments) == 2
    assert "takes numbers with commas, such as 1,9,36; got '1,x'" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["llava-hf", "m3"])
def test_what_is_new_stays_known_in_other_formats(form: str, tmp_path: Path) -> None:
    """Their rows go on training beside an adapter after the way there and back."""
    tower = make_config(vision="clip_vision_model").vision_config
    AutoModel.from_config(tower).save_pretrained(tmp_path / "vision")
    CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size=PIXELS).save_pretrained(
        tmp_path / "vision"
    )
    decoder = make_decoder(tmp_path / "decoder", "llama")
    assemble(tmp_path / "vision", decoder, tmp_path / "model", Choices())
    convert(tmp_path / "model", tmp_path / "there", to=form)
    convert(tmp_path / "there", tmp_path / "back")
    assert M3Config.from_pretrained(tmp_path / "back").new_token_ids == [97, 98]


@pytest.mark.parametrize(
    ("kind", "options", "embedding"),
    [
        ("gpt2", {"n_embd": 32, "n_layer": 1, "n_head": 2}, "transformer.wte"),
        ("falcon", {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}, "transformer.word_embeddings"),
        ("bloom", {"hidden_size": 32, "n_layer": 1, "n_head": 2}, "transformer.word_embeddings"),
        ("opt", {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 32, "word_embed_proj_dim": 32},
         "model.decoder.embed_tokens"),
        ("mamba", {"hidden_size": 32, "num_hidden_layers": 1, "state_size": 4}, "backbone.embeddings"),
        ("gpt_neox", {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
         "gpt_neox.embed_in"),
    ],
)  # fmt: skip
def test_decoders_whose_tables_have_other_names_are_refused_in_words(
    kind: str, options: dict, embedding: str, vision: Path, tmp_path: Path
) -> None:
    CONFIG_MAPPING[kind](vocab_size=96, **options).save_pretrained(tmp_path / "decoder")
    make_tokenizer(96).save_pretrained(tmp_path / "decoder")
    with pytest.raises(
        ValueError,
        match=f"type {kind} keeps its embedding as '{embedding}' and its output as "
        ".*m3 assemble joins",
    ):
        assemble(vision, tmp_path / "decoder", tmp_path / "model", Choices())
    assert not (tmp_path / "model").exists()


def test_a_decoder_whose_output_has_a_bias_is_refused_in_words(
    vision: Path, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CONFIG_MAPPING["phi"](vocab_size=96, intermediate_size=32, **sizes)
    config.save_pretrained(tmp_path / "decoder")
    make_tokenizer(96).save_pretrained(tmp_path / "decoder")
    with pytest.raises(ValueError, match="type phi adds a bias to its logits"):
        assemble(vision, tmp_path / "decoder", tmp_path / "model", Choices())


def test_pickled_parts_are_assembled_on_request(
    vision: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    decoder = make_decoder(tmp_path / "decoder", "llama")
    assemble(vision, decoder, tmp_path / "plain", Choices())
    weights = decoder / "model.safetensors"
    torch.save(load_file(weights), decoder / "pytorch_model.bin")
    weights.unlink()
    arguments = [str(tmp_path / "model"), "--vision", str(vision), "--decoder", str(decoder)]
    assert main(["assemble", *arguments]) == 2
    assert main(["assemble", *arguments, "--allow-pickle"]) == 0
    ours, plain = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "plain"))
    assert all(torch.equal(ours[name], plain[name]) for name in plain)
    assert "a grid of 12x12 tokens: scales 1, 4, 9, 16, 36, 144 can be reached" in caplog.text
