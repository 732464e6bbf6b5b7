"""The plug-in under the real harness, in this process."""

from importlib.metadata import entry_points
from pathlib import Path

import pytest
from lmms_eval import evaluator
from lmms_eval.models import get_model
from lmms_eval.protocol import ChatMessages
from lmms_eval.tasks import TaskManager

from m3.evaluation.answering.decoding import Decoding
from m3.evaluation.answering.engine import Engine
from m3.evaluation.harness.lmms_model import (
    EngineModel,
    M3Chat,
    M3Simple,
    chat_messages,
    simple_messages,
)
from m3.evaluation.harness.plugin import manifests
from m3.processing.video import Sampling
from tests.evaluation.conftest import make_image

TWO = Sampling(num_frames=2)


def evaluate(task: str, task_folder: Path, **arguments: object) -> dict:
    manager = TaskManager(include_path=str(task_folder), include_defaults=False)
    return evaluator.simple_evaluate(
        tasks=[task],
        task_manager=manager,
        bootstrap_iters=0,
        log_samples=True,
        device="cpu",
        batch_size=4,
        **arguments,
    )


def texts(results: dict, task: str) -> list[str]:
    return [
        sample["filtered_resps"][0]
        for sample in sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    ]


def test_manifest_and_entry_point_name_the_classes():
    (manifest,) = manifests()
    assert manifest.model_id == "m3"
    found = [entry for entry in entry_points(group="lmms_eval.models") if entry.name == "m3"]
    assert [entry.value for entry in found] == ["m3.evaluation.harness.plugin:manifests"]
    assert get_model("m3") is M3Chat
    assert get_model("m3", force_simple=True) is M3Simple


def test_scale_comes_from_model_args_or_generation_kwargs(model_folder: Path, task_folder: Path):
    by_model = {
        scale: texts(
            evaluate(
                "tiny_one",
                task_folder,
                model="m3",
                model_args=f"pretrained={model_folder},matryoshka_vis_token_scale={scale}",
            ),
            "tiny_one",
        )
        for scale in (1, 36)
    }
    assert by_model[1] != by_model[36]
    overridden = evaluate(
        "tiny_one",
        task_folder,
        model="m3",
        model_args=f"pretrained={model_folder},matryoshka_vis_token_scale=36",
        gen_kwargs="matryoshka_vis_token_scale=1",
    )
    assert texts(overridden, "tiny_one") == by_model[1]
    default = evaluate(
        "tiny_one",
        task_folder,
        model="m3",
        model_args=f"pretrained={model_folder}",
        force_simple=True,
    )
    # the largest trained scale; simple requests say the same
    assert texts(default, "tiny_one") == by_model[36]


def test_likelihood_obeys_the_scale(engine: Engine, task_folder: Path):
    losses = {}
    for scale in (1, 36):
        results = evaluate(
            "tiny_choice", task_folder, model=EngineModel(engine, scale, 4, is_simple=True)
        )
        samples = results["samples"]["tiny_choice"]
        assert len(samples) == 6
        losses[scale] = [choice[0] for sample in samples for choice in sample["filtered_resps"]]
        best = [min(range(6), key=lambda i: sample["filtered_resps"][i][0]) for sample in samples]
        right = [index == ["red", "green", "blue", "white", "black", "yellow"].index(s["target"]) if isinstance(s["target"], str)
                 else index == s["target"] for index, s in zip(best, samples, strict=True)]  # fmt: skip
        assert results["results"]["tiny_choice"]["acc,none"] == pytest.approx(sum(right) / 6)
    assert all(loss > 0 for loss in losses[1] + losses[36])
    assert losses[1] != losses[36]


def test_an_error_is_raised_and_never_an_empty_answer(engine: Engine, task_folder: Path):
    model = EngineModel(engine, 9, 4, is_simple=False)
    manager = TaskManager(include_path=str(task_folder), include_defaults=False)
    with pytest.raises(
        ValueError,
        match="scale 7 cannot be reached exactly from a 6x6 grid; choose one of 1, 4, 9, 36",
    ):
        evaluator.simple_evaluate(
            model=model,
            tasks=["tiny_one"],
            task_manager=manager,
            bootstrap_iters=0,
            gen_kwargs="matryoshka_vis_token_scale=7",
        )
    with pytest.raises(ValueError, match="unknown generation setting max_words"):
        evaluator.simple_evaluate(
            model=model,
            tasks=["tiny_one"],
            task_manager=manager,
            bootstrap_iters=0,
            gen_kwargs="max_words=7",
        )


def test_arguments_are_read_strictly(model_folder: Path):
    with pytest.raises(
        ValueError,
        match="no model argument 'matryoshka_scale'; did you mean matryoshka_vis_token_scale",
    ):
        M3Chat.create_from_arg_string(f"pretrained={model_folder},matryoshka_scale=9")
    with pytest.raises(ValueError, match="choose one of 1, 4, 9, 36"):
        M3Chat.create_from_arg_string(f"pretrained={model_folder},matryoshka_vis_token_scale=100")
    with pytest.raises(ValueError, match="batch_size must be a number"):
        M3Chat.create_from_arg_string(f"pretrained={model_folder}", {"batch_size": "auto"})


def test_name_is_stable_and_clean_keeps_the_model(engine: Engine, model_folder: Path):
    model = EngineModel(engine, 9, 4, is_simple=True)
    assert str(model) == f"m3(weights={engine.weights}, matryoshka_vis_token_scale=9)"
    assert str(
        M3Chat.create_from_arg_string(f"pretrained={model_folder},matryoshka_vis_token_scale=9")
    ) == str(model)
    model.clean()
    assert model.engine.model is engine.model


def test_messages_of_both_kinds_are_worded_alike(engine: Engine):
    image = make_image(0)
    simple, pictures = simple_messages("What is it?", [image], engine, TWO)
    assert simple == [{"role": "user", "content": "<image>\nWhat is it?"}]
    content = [{"type": "image", "url": image}, {"type": "text", "text": "What is it?"}]
    chat, seen = chat_messages(
        ChatMessages(messages=[{"role": "user", "content": content}]), engine, TWO
    )
    assert chat == simple
    assert [picture.digest for picture in pictures] == [picture.digest for picture in seen]
    placed, _ = simple_messages("Compare <image> and <image>.", [image, image], engine, TWO)
    assert placed[0]["content"] == "Compare <image> and <image>."
    audio = ChatMessages(
        messages=[{"role": "user", "content": [{"type": "audio", "url": "sound.wav"}]}]
    )
    with pytest.raises(ValueError, match="this task sends audio"):
        chat_messages(audio, engine, TWO)


def test_control_tokens_in_a_benchmark_are_plain_text(engine: Engine):
    """They can neither end a turn nor claim an image; the text keeps every character."""
    # two places for one picture: no places at all
    text = "What do <|im_end|>, <image> and <image> mean?"
    for messages, pictures in (
        simple_messages(text, [make_image(0)], engine, TWO),
        chat_messages(
            ChatMessages(
                messages=[
                    {
                        "role": "user",
                        "content": [
                            {"type": "image", "url": make_image(0)},
                            {"type": "text", "text": text},
                        ],
                    }
                ]
            ),
            engine,
            TWO,
        ),
    ):
        question = engine.question(messages, pictures, 4, Decoding(max_new_tokens=2))
        ids = engine._row(question).ids
        plain = engine._row(
            engine.question(*simple_messages("x", [make_image(0)], engine, TWO), 4, Decoding())
        ).ids
        tokenizer = engine.processor.tokenizer
        for token in ("<|im_end|>", "<image>", "<|im_start|>"):
            number = tokenizer.convert_tokens_to_ids(token)
            assert ids.count(number) == plain.count(number)
        assert text in tokenizer.decode(ids)
        assert len(list(engine.answer([question], 1))) == 1
