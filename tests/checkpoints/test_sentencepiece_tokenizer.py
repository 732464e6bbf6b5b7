"""A checkpoint as M3 is published, with a slow sentencepiece tokenizer: the ids are those that
the original made.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor

from m3.cli import main
from m3.data.sample import Sample, Turn
from m3.data.tokenized import tokenize_sample
from m3.processing import M3Processor
from m3.processing.control_tokens import control_tokens, encode_fenced, fence

spm = pytest.importorskip("sentencepiece")
from sentencepiece import sentencepiece_model_pb2 as proto  # noqa: E402  (after the check that it is there)

FLAT = Path(__file__).parents[1] / "fixtures" / "llava_m3" / "flat"
PIECES = 400
BOS, IMAGE = 1, PIECES  # Llama's beginning of a text; the next free id
CONVERSATIONS = (
    [("user", "<image>\nWhat is it?")],
    [("user", "What is this <image>")],
    [
        ("user", "A <image><image> and <image> or\n<image>?"),
        ("assistant", "It is  red, é!"),
        ("user", "Who\n\nis it"),
    ],
    [
        ("system", "Be polite."),
        ("user", "Hello <image>hello"),
        ("assistant", "No"),
        ("user", " <image>\nquestions?"),
    ],
)
LEGACY = {"legacy": True, "not legacy": False, "not said": None}


def train(file: Path) -> None:
    """A model as Llama's: byte-pair pieces, bytes for the rest, no normalisation, three control
    tokens.
    """
    text = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, "
        "and polite answers to the user's questions. USER: What is it? ASSISTANT: It is red"
    )
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter([text] * 30 + ["USER: Who is it? ASSISTANT: No"] * 10),
        model_prefix=str(file.with_suffix("")),
        vocab_size=PIECES,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        unk_id=0,
        bos_id=BOS,
        eos_id=2,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )


def add_tokenizer(folder: Path, legacy: bool | None) -> None:
    """The three files of a slow Llama tokenizer."""
    train(folder / "tokenizer.model")
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    added = {name: {"content": token, **flags} for name, token in tokens.items()}
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "model_max_length": 2048,
        "padding_side": "right",
    }
    settings |= {
        "add_bos_token": True,
        "add_eos_token": False,
        "pad_token": None,
        "sp_model_kwargs": {},
    }
    settings |= {name: {"__type": "AddedToken", **token} for name, token in added.items()}
    settings |= {} if legacy is None else {"legacy": legacy}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text(json.dumps(added | {"pad_token": "<unk>"}))


def published(folder: Path, legacy: bool | None) -> Path:
    """The fixture with that tokenizer, and rows for its ids."""
    shutil.copytree(FLAT, folder)
    add_tokenizer(folder, legacy)
    config, tensors = (
        json.loads((folder / "config.json").read_text()),
        load_file(folder / "model.safetensors"),
    )
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": PIECES}))
    torch.manual_seed(0)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.randn(PIECES, tensors[name].shape[1]) * 0.1
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module", params=LEGACY)
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, bool]:
    """As published, and converted by the command."""
    folder, legacy = tmp_path_factory.mktemp("sentencepiece"), LEGACY[request.param]
    source = published(folder / "published", legacy)
    assert main(["convert", str(source), str(folder / "native")]) == 0
    return source, folder / "native", legacy is not False


def original_ids(folder: Path, prompt: str, legacy: bool) -> list[int]:
    """`tokenizer_image_token` of LLaVA with the slow `LlamaTokenizer` of transformers 4, on
    sentencepiece itself.

    A legacy one gives sentencepiece each text between special tokens, and each gets a space in
    front; another one puts that space before the whole text and tells sentencepiece to add none.
    """
    model = proto.ModelProto.FromString((folder / "tokenizer.model").read_bytes())
    model.normalizer_spec.add_dummy_prefix = legacy
    slow = spm.SentencePieceProcessor(model_proto=model.SerializeToString())
    ids = [BOS]
    for number, chunk in enumerate(prompt.split("<image>")):
        ids += [IMAGE] * (number > 0)
        texts = (chunk if legacy else f" {chunk}" if chunk else "").split("</s>")
        for place, text in enumerate(texts):
            ids += [2] * (place > 0) + (slow.encode(text) if text else [])
    return ids


def original_prompt(conversation: list[tuple[str, str]]) -> str:
    """`conv_vicuna_v1.get_prompt()`, ready for an answer."""
    system = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, "
        "and polite answers to the user's questions."
    )
    text = ""
    for role, content in conversation:
        if role == "system":
            system = content
        text += {
            "user": f"USER: {content.strip()} ",
            "assistant": f"ASSISTANT: {content}</s>",
            "system": "",
        }[role]
    return f"{system} {text}ASSISTANT:"


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=range(len(CONVERSATIONS)))
def test_the_ids_are_those_of_the_slow_tokenizer(
    both: tuple[Path, Path, bool], conversation: list[tuple[str, str]]
) -> None:
    source, native, legacy = both
    processor = AutoProcessor.from_pretrained(native)
    messages = [{"role": role, "content": content} for role, content in conversation]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    expected = original_ids(source, original_prompt(conversation), legacy)
    assert processor.tokenizer(text, add_special_tokens=False)["input_ids"] == expected
    pictures = [FLAT / "image.png"] * expected.count(IMAGE)
    called = processor(text=text, images=pictures, matryoshka_vis_token_scale=1)
    assert called["input_ids"][0].tolist() == expected, (
        "the processor's own call puts no second <s> before it"
    )


def test_training_learns_the_answer_and_its_end(both: tuple[Path, Path, bool]) -> None:
    _, native, _ = both
    processor = AutoProcessor.from_pretrained(native)
    sample = Sample(
        "a",
        (FLAT / "image.png",),
        (Turn("user", "<image>\nWho is it?"), Turn("assistant", "It is red")),
    )
    tokenized = tokenize_sample(sample, processor)
    learned = [
        i for i, learns in zip(tokenized.input_ids, tokenized.labels_mask, strict=True) if learns
    ]
    tokens = processor.tokenizer.convert_ids_to_tokens(learned)
    assert (tokens[0][0], "".join(tokens)) == ("▁", "▁It▁is▁red</s>")


def test_a_control_token_in_a_question_is_trained_as_it_is_asked(
    both: tuple[Path, Path, bool],
) -> None:
    """sentencepiece puts a space before a text; none comes behind a token that is spelled out."""
    processor = AutoProcessor.from_pretrained(both[1])
    question = "What</s>is <image>it"
    sample = Sample("a", (), (Turn("user", (question,)), Turn("assistant", "It is red")))
    tokenized = tokenize_sample(sample, processor)
    content = fence(question, control_tokens(processor))
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    ids = encode_fenced(processor.tokenizer, prompt)
    assert question in processor.tokenizer.decode(ids)
    assert tokenized.input_ids[: len(ids)] == ids


def test_what_it_says_again_after_saving(both: tuple[Path, Path, bool], tmp_path: Path) -> None:
    """transformers' `LlamaTokenizer` forgets `legacy` when it is saved."""
    processor = AutoProcessor.from_pretrained(both[1])
    processor.save_pretrained(tmp_path)
    again: M3Processor = AutoProcessor.from_pretrained(tmp_path)
    text = "A chat <image>\nWhat</s>USER: é"
    assert again.tokenizer(text)["input_ids"] == processor.tokenizer(text)["input_ids"]
    assert again.tokenizer(text)["input_ids"][0] == BOS
    assert (
        again.tokenizer.decode(again.tokenizer("What is é?")["input_ids"], skip_special_tokens=True)
        == "What is é?"
    )


def test_chat_runs_on_it(both: tuple[Path, Path, bool], capsys: pytest.CaptureFixture[str]) -> None:
    source, native, legacy = both
    arguments = [
        "chat",
        "--model-path",
        str(native),
        "--device",
        "cpu",
        "--image-file",
        str(FLAT / "image.png"),
    ]
    arguments += [
        "--query",
        "What is it?",
        "--max-new-tokens",
        "4",
        "--matryoshka_vis_token_scale",
        "9",
        "--explain",
    ]
    capsys.readouterr()
    assert main(arguments) == 0
    row = next(
        line.split() for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["9"]
    )
    expected = original_ids(source, original_prompt([("user", "<image>\nWhat is it?")]), legacy)
    assert row[1:3] == ["9", str(len(expected) - 1)]


def test_without_sentencepiece_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = published(tmp_path / "published", False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["convert", str(source), str(tmp_path / "native")]) != 0
    error = capsys.readouterr().err
    assert "the package sentencepiece, which is not installed: pip install -e '.[convert]'" in error
    assert not (tmp_path / "native").exists()
