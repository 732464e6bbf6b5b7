"""A sampled answer depends on its question alone."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from PIL import Image
from tiny_models import make_model
from transformers import CONFIG_MAPPING

from m3.evaluation.answering.decoding import Decoding
from m3.evaluation.answering.engine import Engine
from m3.evaluation.answering.questions import Picture, Question
from m3.evaluation.answering.seeded_sampling import SeededSampling, question_seeds
from m3.evaluation.harness.lmms_model import listed

HOT = Decoding(6, do_sample=True, temperature=1.5, top_k=0)


def ask(
    engine: Engine, number: int, decoding: Decoding = HOT, continuation: str | None = None
) -> Question:
    picture = Picture.of(Image.new("RGB", (48, 48), (40 * number % 255, 10, 200)))
    words = " ".join(["What is it"] * (1 + number % 4))
    return engine.question(
        [{"role": "user", "content": f"<image>\n{words}"}], [picture], 4, decoding, continuation
    )


def texts(
    engine: Engine, questions: list[Question], batch_size: int, wanted: list[bool] | None = None
) -> dict[int, str]:
    return {
        n: reply.text
        for batch in engine.answer(questions, batch_size, wanted)
        for n, reply in batch
    }


@pytest.mark.parametrize(
    "decoding",
    [HOT, replace(HOT, top_p=0.7), replace(HOT, top_k=5), replace(HOT, repetition_penalty=1.3)],
)
def test_answers_do_not_depend_on_the_batch_or_on_what_came_before(
    engine: Engine, decoding: Decoding
) -> None:
    questions = [ask(engine, number, decoding) for number in range(8)]
    whole = texts(engine, questions, 4)
    torch.manual_seed(123)
    assert texts(engine, questions, 1) == whole
    rest = texts(engine, questions, 4, [number > 4 for number in range(8)])
    assert all(whole[number] == text for number, text in rest.items() if number > 4)
    assert texts(engine, questions[3:4], 4)[0] == whole[3]
    assert len(set(whole.values())) > 4


def test_a_question_asked_several_times_is_drawn_several_times(engine: Engine) -> None:
    questions = [ask(engine, 1)] * 5
    answers = texts(engine, questions, 2)
    assert len(set(answers.values())) > 2
    assert texts(engine, questions, 5) == answers
    assert len(set(question_seeds(questions))) == 5


def test_draws_follow_the_distribution() -> None:
    """Against softmax with temperature, top-k and top-p, 20,000 draws: three standard errors."""
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -4.0])
    decoding = Decoding(1, do_sample=True, temperature=2.0, top_k=5, top_p=0.9)
    expected = (logits / 2.0).masked_fill(torch.arange(6) > 4, -torch.inf).softmax(0)
    expected = torch.where(expected.cumsum(0) - expected < 0.9, expected, 0.0)
    expected /= expected.sum()
    draws = SeededSampling(decoding, range(20_000))(
        torch.zeros(20_000, 1, dtype=torch.long), logits.expand(20_000, -1)
    )
    counts = Counter(draws.argmax(1).tolist())
    for token, share in enumerate(expected.tolist()):
        assert abs(counts[token] / 20_000 - share) <= 3 * (share * (1 - share) / 20_000) ** 0.5


@pytest.mark.parametrize("kind", ["gpt2", "opt", "gpt_neo", "llama"])
def test_batches_of_decoders_with_learned_positions_equal_single_questions(
    kind: str, engine: Engine
) -> None:
    """Rows are padded on the left; positions are counted without padding."""
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
    }
    more = {
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
        "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
        "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    }
    config = engine.model.config
    text = CONFIG_MAPPING[kind](
        **sizes | more.get(kind, {}), vocab_size=config.text_config.vocab_size, pad_token_id=0
    )
    model = make_model(
        text_config=text.to_dict(),
        vision_config=config.vision_config,
        image_token_id=config.image_token_id,
        nesting={"kind": "grid_pool", "trained_scales": [1, 4, 9, 36]},
    )
    other = Engine(model, engine.processor, "weights")
    scored = [ask(other, number, Decoding(4), " red") for number in range(4)]
    together = {n: reply for batch in other.answer(scored, 4) for n, reply in batch}
    for number, question in enumerate(scored):
        ((_, alone),) = next(iter(other.answer([question], 1)))
        assert alone.log_likelihood is not None
        assert together[number].log_likelihood[0] == pytest.approx(
            alone.log_likelihood[0], abs=1e-5
        )
    written = [ask(other, number, Decoding(4)) for number in range(4)]
    assert texts(other, written, 4) == {
        n: texts(other, [question], 1)[0] for n, question in enumerate(written)
    }


def test_what_a_task_gives_as_visuals() -> None:
    picture = Image.new("RGB", (4, 4))
    assert listed(None) == []
    assert listed(picture) == [picture]
    assert listed((picture, "a.mp4")) == [picture, "a.mp4"]
    assert listed("a.mp4") == ["a.mp4"]
