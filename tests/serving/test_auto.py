"""Budgets that the model's router chooses, or a rule by the size of a picture: in requests, in
batches, with what was seen for the choice.
"""

import copy
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from serving_files import PATIENCE, png
from videos import write_video

from m3.inference import Conversation, Generation
from m3.processing.video import Sampling
from m3.serving.engine.engine import Engine
from m3.serving.engine.preparation import Draft, Preparation
from m3.serving.engine.requests import Busy, Event, Finished, Refused, Request, Turn, Visual
from m3.serving.settings import Limits, Queue, Settings

COLOURS = ("red", "green", "blue", "yellow", "white", "black", "orange", "purple")
QUESTIONS = ("What is it?", "How many digits are there?", "Why?", "Which bar is the tallest?")


@pytest.fixture
def make(routed) -> Iterator[Callable[..., Engine]]:
    """Engines of a model with a router, closed in the end."""
    engines: list[Engine] = []

    def make_engine(model=routed[0], **settings) -> Engine:
        engines.append(Engine(model, routed[1], Settings(name="tiny", **settings)))
        return engines[-1]

    yield make_engine
    for engine in engines:
        engine.close()


def still(colour: str = "red", scale=None, size: tuple[int, int] = (60, 40)) -> Visual:
    return Visual("image", png(colour, size), scale)


def question(*visuals: Visual, text: str = "What is it?", scale=None, tokens: int = 8) -> Request:
    return Request((Turn("user", (*visuals, text)),), scale, Generation(tokens))


def value(engine: Engine, name: str, **labels: str) -> float:
    found = engine.metrics.registry.get_sample_value(name, labels)
    return 0.0 if found is None else found


def by_hand(request: Request, scales: tuple[int | str, ...]) -> Request:
    """The same question, with these budgets for its stills."""
    visuals = [
        Visual("image", visual.content, scale)
        for visual, scale in zip(request.visuals, scales, strict=True)
    ]
    return question(*visuals, text=str(request.turns[0].parts[-1]))


def test_the_chosen_budget_given_by_hand_is_the_same_answer(make, routed) -> None:
    engine, chosen = make(), set()
    for colour in COLOURS:
        for text in QUESTIONS:
            asked = question(still(colour), text=text, scale="auto")
            answer = engine.answer(asked)
            repeated = engine.answer(by_hand(asked, answer.usage.scales_of))
            assert (answer.text, answer.usage) == (repeated.text, repeated.usage)
            conversation = Conversation(*routed, asked.generation)
            conversation.show_image(asked.visuals[0].content)
            assert conversation.ask(text, "auto").text == answer.text
            chosen |= {*answer.usage.scales_of}
    assert len(chosen) > 1, "a router that always chooses the same shows nothing"


def test_automatic_and_fixed_budgets_share_a_batch(make) -> None:
    scales = ("auto", 36, "auto:0.8", "9@24", "auto:rule", "auto:1")
    asked = [
        question(
            still(COLOURS[n % 8], scales[n % 6]),
            still(COLOURS[(n + 3) % 8], scales[(n + 1) % 6]),
            text=QUESTIONS[n % 4],
        )
        for n in range(24)
    ]
    engine, alone = make(queue=Queue(running=5, waiting=100)), make()
    with ThreadPoolExecutor(24) as threads:
        answers = list(threads.map(engine.answer, asked))
    for n, (request, answer) in enumerate(zip(asked, answers, strict=True)):
        repeated = alone.answer(by_hand(request, answer.usage.scales_of))
        assert (answer.text, answer.usage) == (repeated.text, repeated.usage)
        for place, setting in enumerate((scales[n % 6], scales[(n + 1) % 6])):
            fixed = {"auto:0.8": "1@24", "auto:rule": 144}.get(setting, setting)
            if not str(fixed).startswith("auto"):
                assert answer.usage.scales_of[place] == fixed
    assert value(engine, "m3_decode_steps_total") < sum(
        answer.usage.new_tokens for answer in answers
    )


def test_a_view_is_seen_once(make) -> None:
    engine = make(cache_bytes=0)
    answer = engine.answer(question(still(), scale="auto:0.8"))
    assert answer.usage.scales_of == ("1@24",)
    assert value(engine, "m3_tower_images_total") == 1, "nothing is kept for others"
    assert value(engine, "m3_cache_misses_total") == 1


def test_what_was_seen_is_kept_for_the_next(make, routed) -> None:
    engine = make(largest(routed))
    for looks, scale, hits in ((2, "auto", 0), (2, "auto", 1), (2, 144, 2), (2, "9@24", 3)):
        answer = engine.answer(question(still(), scale=scale))
        assert value(engine, "m3_tower_images_total") == looks, scale
        assert value(engine, "m3_cache_hits_total") == hits, scale
    assert answer.usage.scales_of == ("9@24",)
    engine.answer(question(still("blue"), scale="36@24"))
    engine.answer(question(still("blue"), scale="auto"))
    assert value(engine, "m3_tower_images_total") == 4, "the router's view was there already"
    assert value(engine, "m3_cache_misses_total") == 3, "the chosen one was not"


def largest(routed):
    """The model, with a router that always prefers 144 tokens."""
    model = copy.deepcopy(routed[0])
    with torch.no_grad():
        model.model.budget_router.head.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 0.0, -1e6]))
    return model


def test_a_budget_for_each_frame(make, routed, tmp_path) -> None:
    write_video(tmp_path / "short.mp4")
    video = Visual("video", (tmp_path / "short.mp4").read_bytes(), "auto", Sampling(num_frames=4))
    engine = make(largest(routed))
    answer = engine.answer(question(video, still(scale="auto:0.8"), still("blue")))
    assert answer.usage.scales_of == (144, 144, 144, 144, "1@24", 144)
    assert value(engine, "m3_tower_images_total") == 4 + 4 + 1 + 1
    assert engine.answer(question(video)).usage.scales_of == (144,) * 4
    assert value(engine, "m3_tower_images_total") == 10


def test_the_rule_goes_by_the_size_and_needs_no_router(elastic, tmp_path) -> None:
    engine = Engine(*elastic, Settings(name="tiny"))
    write_video(tmp_path / "short.mp4")
    video = Visual("video", (tmp_path / "short.mp4").read_bytes(), None, Sampling(num_frames=2))
    small, large = still(size=(24, 10)), still(size=(10, 25))
    try:
        for _ in range(2):  # kept or not
            answer = engine.answer(question(small, large, video, scale="auto:rule"))
            assert answer.usage.scales_of == ("36@24", 144, 144, 144)
        assert value(engine, "m3_tower_images_total") == 4
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("limits", "visual", "scale", "words"),
    [
        (Limits(), still(), "auto:0.5", "auto:0.5 is outside what this router was .* 0.8 to 1"),
        (Limits(), still(), "auto:7", "expected 0 to 1, such as auto:0.95"),
        (Limits(), Visual("image", b"GIF89a nothing"), "auto", "image of 14 bytes"),
        (Limits(), Visual("image", b"GIF89a nothing"), "auto:rule", "image of 14 bytes"),
        (Limits(pixels=2000), still(), "auto:rule", "send a smaller copy of the picture$"),
        (Limits(pixels=2000), still(), "auto", "send a smaller copy of the picture$"),
        (Limits(prompt_tokens=100), still(), "auto", "has 15. tokens, 144 of them visual, .* 100"),
    ],
)
def test_a_refused_choice_says_why(make, routed, limits, visual, scale, words: str) -> None:
    engine = make(largest(routed), limits=limits)
    with pytest.raises(Refused, match=words) as caught:
        engine.answer(question(visual, scale=scale))
    assert caught.value.status == 400
    assert value(engine, "m3_requests_total", outcome="refused") == 1


def test_a_choice_that_does_not_fit_the_model_is_refused_alone(make, routed) -> None:
    model = largest(routed)
    model.config.text_config.max_position_embeddings = 150
    engine = make(model)
    asked = [question(still(COLOURS[n]), scale=("auto", "auto:0.8")[n % 2]) for n in range(8)]

    def ask(request: Request) -> Finished | Refused:
        try:
            return engine.answer(request)
        except Refused as refused:
            return refused

    with ThreadPoolExecutor(8) as threads:
        ends = list(threads.map(ask, asked))
    for n, end in enumerate(ends):
        if n % 2:
            assert isinstance(end, Finished)
            assert end.usage.scales_of == ("1@24",)
        else:
            assert isinstance(end, Refused)
            assert end.code == "context_length_exceeded"
            assert "144 of them for 1 picture, and the model reads at most 150" in str(end)


def test_no_room_for_a_look_is_said_to_that_request_alone(make, monkeypatch) -> None:
    from m3.serving.engine import scheduler

    def no_room(*_: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 20.00 GiB")

    engine = make()
    monkeypatch.setattr(scheduler, "choose_budgets", no_room)
    with pytest.raises(Busy, match="ran out of memory") as caught:
        engine.answer(question(still(), scale="auto"))
    assert caught.value.status == 503
    assert engine.answer(question(still(), scale=9)).usage.scales_of == (9,)
    monkeypatch.undo()
    engine.answer(question(still(), scale="auto"))


def test_closing_finishes_what_the_router_has_yet_to_choose(make) -> None:
    engine = make(queue=Queue(running=2))
    ends: queue.SimpleQueue[Event | Refused] = queue.SimpleQueue()
    for n in range(6):
        engine.submit(question(still(COLOURS[n]), scale="auto", tokens=1), ends.put)
    engine.close()
    events = [ends.get_nowait() for _ in range(ends.qsize())]
    assert sum(isinstance(event, Finished) for event in events) == 6


@pytest.mark.parametrize("left", [True, False])
def test_who_leaves_before_the_choice_costs_no_look(make, monkeypatch, left: bool) -> None:
    engine, submitted = make(), threading.Event()
    prepare = Preparation.prepare

    def prepare_last(self: Preparation, request: Request) -> object:
        draft = prepare(self, request)
        assert isinstance(draft, Draft) and submitted.wait(PATIENCE)
        job.cancelled, job.deadline = left, job.accepted
        return draft

    monkeypatch.setattr(Preparation, "prepare", prepare_last)
    ends: queue.SimpleQueue[Event | Refused] = queue.SimpleQueue()
    job = engine.submit(question(still(), scale="auto"), ends.put)
    submitted.set()
    end = ends.get(timeout=PATIENCE)
    assert isinstance(end, Refused)
    assert end.status == (499 if left else 429)
    assert value(engine, "m3_tower_images_total") == 0
