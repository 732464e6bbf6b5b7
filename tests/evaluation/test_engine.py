"""Answers in batches equal answers one by one, whatever scales the batch mixes."""

from pathlib import Path

import pytest
import torch

from m3.digest import source_digest
from m3.evaluation.answering.decoding import Decoding
from m3.evaluation.answering.engine import Engine
from m3.evaluation.answering.questions import Picture, Question, Reply
from m3.model.reducers.grid_pool import GridPoolReducer
from m3.model.reducers.query_prefix import QueryPrefixReducer
from tests.evaluation.conftest import SCALES, make_image

GREEDY = Decoding(max_new_tokens=5)


def ask(
    engine: Engine,
    index: int,
    scale: int,
    decoding: Decoding = GREEDY,
    continuation: str | None = None,
) -> Question:
    text = "<image>\nWhich" + " colour" * (index % 3 + 1)
    messages = [{"role": "user", "content": text}]
    return engine.question(messages, [Picture.of(make_image(index))], scale, decoding, continuation)


def answers(engine: Engine, questions: list[Question], batch_size: int) -> list[Reply]:
    found = {
        index: reply for batch in engine.answer(questions, batch_size) for index, reply in batch
    }
    return [found[index] for index in range(len(questions))]


def test_mixed_scales_in_one_batch_equal_separate_calls(engine: Engine):
    questions = [ask(engine, index, scale) for index, scale in enumerate(SCALES)]
    batches = list(engine.answer(questions, batch_size=4))
    assert [len(batch) for batch in batches] == [4]
    together = {index: reply.text for index, reply in batches[0]}
    alone = [answers(engine, [question], 1)[0].text for question in questions]
    assert [together[index] for index in range(4)] == alone
    assert len(set(alone)) > 1


def test_generation_equals_the_processor_and_the_model(engine: Engine):
    """The path of a user: processor, generate, decode."""
    question = ask(engine, 1, 9)
    inputs = engine.processor(
        images=[question.pictures[0].image],
        text=[question.text],
        matryoshka_vis_token_scale=9,
        return_tensors="pt",
    )
    output = engine.model.generate(**inputs, max_new_tokens=5, do_sample=False)[
        0, inputs["input_ids"].shape[1] :
    ]
    expected = engine.processor.tokenizer.decode(output, skip_special_tokens=True).strip()
    reply = answers(engine, [question], 1)[0]
    assert reply.text == expected != ""
    assert (reply.visual_tokens, reply.visual_tokens + reply.text_tokens) == (
        9,
        inputs["input_ids"].shape[1],
    )
    assert reply.answer_tokens == len(output)


def test_likelihood_obeys_the_scale_and_equals_a_direct_forward(engine: Engine):
    direct = {}
    for scale in (4, 36):
        question = ask(engine, 0, scale)
        inputs = engine.processor(
            images=[question.pictures[0].image],
            text=[question.text + "green"],
            matryoshka_vis_token_scale=scale,
            return_tensors="pt",
        )
        with torch.no_grad():
            log_p = engine.model(**inputs).logits[0].log_softmax(-1)
        ids = inputs["input_ids"][0]
        direct[scale] = sum(float(log_p[i - 1, ids[i]]) for i in range(len(ids) - 5, len(ids)))
    questions = [ask(engine, 0, 4, continuation="green"), ask(engine, 0, 36, continuation="green")]
    replies = answers(engine, questions, batch_size=2)
    values = [reply.log_likelihood[0] for reply in replies if reply.log_likelihood]
    assert values == pytest.approx([direct[4], direct[36]], abs=1e-4)  # measured: below 1e-5
    assert abs(values[0] - values[1]) > 1e-2
    assert [reply.answer_tokens for reply in replies] == [5, 5]


def test_greedy_continuation_is_called_greedy(engine: Engine):
    one = Decoding(max_new_tokens=1)
    first = {i: answers(engine, [ask(engine, i, 9, one)], 1)[0].text for i in range(12)}
    # one byte, one token
    index, greedy = next((i, text) for i, text in first.items() if text.isascii() and text)
    scored = answers(
        engine,
        [ask(engine, index, 9, continuation=greedy), ask(engine, index, 9, continuation="~")],
        2,
    )
    assert [reply.log_likelihood is not None and reply.log_likelihood[1] for reply in scored] == [
        True,
        False,
    ]


def test_unwanted_batches_are_left_out(engine: Engine):
    questions = [ask(engine, index, 9) for index in range(6)]
    wanted = [index == 0 for index in range(6)]
    batches = list(engine.answer(questions, batch_size=1, wanted_questions=wanted))
    everything = list(engine.answer(questions, batch_size=1))
    assert 1 <= len(batches) < len(everything)
    assert 0 in {index for batch in batches for index, _ in batch}


def test_each_image_is_seen_once_for_all_scales(model_folder: Path):
    engine = Engine.load(str(model_folder))
    questions = [ask(engine, index, scale) for scale in SCALES for index in range(3)]
    list(engine.answer(questions, batch_size=2))
    assert engine.pictures.images_seen == 3


def test_bounded_cache_sees_again_and_answers_alike(model_folder: Path):
    roomy, tight = Engine.load(str(model_folder)), Engine.load(str(model_folder))
    tight.pictures.store.max_bytes = 1
    texts = []
    for engine in (roomy, tight, roomy, tight):
        questions = [ask(engine, index % 4, 4) for index in range(8)]
        texts.append([reply.text for reply in answers(engine, questions, 2)])
    assert texts[0] == texts[1] == texts[2] == texts[3]
    assert roomy.pictures.images_seen == 4 < tight.pictures.images_seen


def test_weights_digest_follows_the_weights(model_folder: Path, engine: Engine, tmp_path: Path):
    from tests.evaluation.conftest import save_model

    assert Engine.load(str(model_folder)).weights == engine.weights
    assert Engine.load(str(model_folder), dtype="bfloat16").weights != engine.weights
    assert Engine.load(str(save_model(tmp_path / "other", seed=1))).weights != engine.weights


def test_images_and_image_tokens_must_agree(engine: Engine):
    with pytest.raises(ValueError, match="2 <image> but 1 images"):
        engine.question(
            [{"role": "user", "content": "<image><image> ?"}],
            [Picture.of(make_image(0))],
            4,
            GREEDY,
        )


def test_until_and_sampling_are_honoured(engine: Engine):
    full = answers(engine, [ask(engine, 1, 9, Decoding(max_new_tokens=12))], 1)[0]
    stop = full.text[3]
    cut = answers(engine, [ask(engine, 1, 9, Decoding(max_new_tokens=12, until=(stop,)))], 1)[0]
    assert cut.text == full.text.split(stop)[0].strip()
    assert cut.answer_tokens < full.answer_tokens
    long = answers(
        engine, [ask(engine, 1, 9, Decoding(max_new_tokens=12, until=(full.text[3:5],)))], 1
    )[0]
    assert long.text == full.text.split(full.text[3:5])[0].strip()
    hot = Decoding(max_new_tokens=12, do_sample=True, temperature=5.0, top_k=0)
    torch.manual_seed(0)
    assert len({reply.text for reply in answers(engine, [ask(engine, 1, 9, hot)] * 3, 1)}) > 1


def test_decoding_is_read_strictly():
    read = Decoding.from_task
    assert read(
        {"max_gen_toks": 7, "until": "\n", "temperature": 0, "top_p": 0.3, "do_sample": False}
    ) == Decoding(max_new_tokens=7, until=("\n",))
    assert read({"temperature": 0.5, "top_p": 0.9}) == Decoding(
        do_sample=True, temperature=0.5, top_p=0.9
    )
    assert (
        read({"do_sample": True, "temperature": 0, "matryoshka_vis_token_scale": 9}) == Decoding()
    )
    with pytest.raises(
        ValueError, match="unknown generation setting max_tokns; known: .*max_new_tokens"
    ):
        read({"max_tokns": 5})


def test_answers_of_other_code_are_other_answers(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reducer that is being written has no weights that change: its file tells it apart."""
    before = Engine.load(str(model_folder)).weights
    assert Engine.load(str(model_folder)).weights == before
    monkeypatch.setattr("m3.evaluation.answering.engine.source_digest", lambda kind: "changed")
    assert Engine.load(str(model_folder)).weights != before


def test_code_is_told_apart_by_its_file() -> None:
    assert source_digest(GridPoolReducer) == source_digest(GridPoolReducer)
    assert source_digest(GridPoolReducer) != source_digest(QueryPrefixReducer)
