"""Many requests, one model: equal answers, one look per image, limits, cancellation, a full
house, a clean end.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

import pytest
import torch
from serving_files import PATIENCE, png
from videos import write_video

from m3.inference import Conversation, Generation
from m3.model import M3ForConditionalGeneration
from m3.processing.video import Sampling
from m3.serving.engine.engine import Engine
from m3.serving.engine.preparation import Preparation
from m3.serving.engine.requests import Busy, Event, Finished, Piece, Refused, Request, Turn, Visual
from m3.serving.settings import Limits, Queue, Settings

SCALES = (1, 4, 9, 36, 144)
BUDGETS = (1, "9@24", 9, "36@24", 36, "1@12", 144)
COLOURS = ("red", "green", "blue", "yellow", "white", "black")
QUESTIONS = (
    "What is it?",
    "How many digits are there, and which of them is the largest one?",
    "Why?",
)


@pytest.fixture
def made(loaded) -> Iterator[Callable[..., Engine]]:
    """Engines with settings of their own, closed in the end."""
    engines: list[Engine] = []

    def make(**settings) -> Engine:
        engines.append(Engine(*loaded, Settings(name="tiny", **settings)))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def question(
    text: str = "What is it?", *visuals: Visual, scale=None, tokens: int = 12, **options
) -> Request:
    return Request((Turn("user", (*visuals, text)),), scale, Generation(tokens), **options)


def still(colour: str = "red", scale=None) -> Visual:
    return Visual("image", png(colour), scale)


def value(engine: Engine, name: str, **labels: str) -> float:
    found = engine.metrics.registry.get_sample_value(name, labels)
    return 0.0 if found is None else found


def is_piece(event: Event | Refused) -> bool:
    return isinstance(event, Piece)


def long_request(**options) -> Request:
    """It does not end by itself: the model's ids of the end are random, so some hundred tokens
    are written.
    """
    return question("Tell me all.", tokens=400, **options)


def test_many_at_once_answer_as_each_alone(loaded, made) -> None:
    """Joining and leaving at mixed scales and resolutions changes no greedy answer."""
    engine = made(queue=Queue(running=5, waiting=100))
    asked = [
        question(
            QUESTIONS[n % 3],
            *[still(COLOURS[(n + k) % 6], BUDGETS[n % 7]) for k in range(n % 3)],
            tokens=5 + n,
        )
        for n in range(24)
    ]
    with ThreadPoolExecutor(24) as threads:
        answers = list(threads.map(engine.answer, asked))
    for request, answer in zip(asked, answers, strict=True):
        conversation = Conversation(*loaded, request.generation)
        *visuals, text = request.turns[0].parts
        for visual in visuals:
            conversation.show_image(visual.content)
        expected = conversation.ask(text, next((visual.scale for visual in visuals), None))
        assert answer.text == expected.text
        assert answer.usage.visual_tokens == expected.visual_tokens
    assert (
        value(engine, "m3_decode_steps_total")
        < sum(answer.usage.new_tokens for answer in answers) / 2
    )


def test_an_image_is_seen_once_whatever_it_is_asked_at(made) -> None:
    engine = made()
    answers = [engine.answer(question("What is it?", still(), scale=scale)) for scale in SCALES]
    assert [answer.usage.visual_tokens for answer in answers] == list(SCALES)
    assert value(engine, "m3_tower_runs_total") == 1
    assert value(engine, "m3_tower_images_total") == 1
    assert value(engine, "m3_cache_hits_total") == 4
    for scale in SCALES:
        assert value(engine, "m3_visual_tokens_total", scale=str(scale)) == scale


def test_an_image_is_seen_once_at_each_resolution(made) -> None:
    engine = made()
    scales = ("9@24", "36@24", 9, "1@24", "144@48", "1@12")
    answers = [engine.answer(question("What is it?", still(), scale=scale)) for scale in scales]
    assert [answer.usage.visual_tokens for answer in answers] == [9, 36, 9, 1, 144, 1]
    assert value(engine, "m3_tower_runs_total") == 3
    assert value(engine, "m3_cache_hits_total") == 3
    assert value(engine, "m3_cache_entries") == 1
    assert value(engine, "m3_cache_bytes") == (144 + 36 + 9) * 32 * 4
    assert value(engine, "m3_visual_tokens_total", scale="9@24") == 9
    assert value(engine, "m3_visual_tokens_total", scale="144") == 144


@pytest.mark.parametrize("scale", [None, "9@24"])
def test_those_who_ask_at_once_share_one_look(made, scale: str | None) -> None:
    engine = made()
    asked = question("What is it?", still("blue"), scale=scale)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(engine.answer, [asked] * 8))
    assert value(engine, "m3_tower_runs_total") == 1


def test_the_cache_is_bounded(made) -> None:
    one = 144 * 32 * 4
    engine = made(cache_bytes=2 * one)
    for colour in ("red", "green", "blue", "blue", "red"):
        engine.answer(question("What is it?", still(colour), tokens=1))
        assert value(engine, "m3_cache_bytes") <= 2 * one
    assert value(engine, "m3_cache_entries") == 2
    assert value(engine, "m3_tower_runs_total") == 4  # red was dropped for blue


def test_frames_of_a_video_take_a_schedule(made, tmp_path) -> None:
    write_video(tmp_path / "short.mp4")
    video = Visual("video", (tmp_path / "short.mp4").read_bytes(), "36+1", Sampling(num_frames=4))
    answer = made().answer(question("What happens?", video, still(scale=9)))
    assert answer.usage.visual_tokens_of == (36, 1, 1, 1, 9)


def test_a_schedule_sees_each_frame_at_its_own_resolution(made, tmp_path) -> None:
    write_video(tmp_path / "short.mp4")
    video = Visual("video", (tmp_path / "short.mp4").read_bytes(), None, Sampling(num_frames=4))
    engine = made()
    counts, images = [], []
    for scale in ("36+1@24", "144+9@24", "9@24", 9):
        answer = engine.answer(question("What happens?", video, scale=scale))
        counts.append(answer.usage.visual_tokens_of)
        images.append(value(engine, "m3_tower_images_total"))
    assert counts == [(36, 1, 1, 1), (144, 9, 9, 9), (9,) * 4, (9,) * 4]
    assert images == [4, 4, 5, 8], "what was seen of a frame is not seen again"


def test_a_batch_of_many_resolutions_answers_as_each_alone(made, tmp_path) -> None:
    write_video(tmp_path / "short.mp4")
    video = Visual("video", (tmp_path / "short.mp4").read_bytes(), None, Sampling(num_frames=4))
    shown = {"9@24": still(), 36: still(), "36+1@24": video, "1@12+9": video, "36@24": still()}
    asked = [question(text, visual, scale=s) for s, visual in shown.items() for text in QUESTIONS]
    engine = made()
    with ThreadPoolExecutor(len(asked)) as threads:
        answers = list(threads.map(engine.answer, asked))
    for request, answer in zip(asked, answers, strict=True):
        alone = made().answer(request)
        assert (answer.text, answer.usage) == (alone.text, alone.usage)


def test_pieces_are_the_answer(made) -> None:
    engine = made()

    async def pieces() -> list[Event]:
        return [event async for event in engine.stream(long_request())]

    *parts, end = asyncio.run(pieces())
    assert isinstance(end, Finished)
    assert len(parts) > 5
    assert "".join(part.text for part in parts if isinstance(part, Piece)) == end.text


def test_sampling_follows_its_seed(made) -> None:
    engine = made()
    hot = Request(
        (Turn("user", ("Tell me all.",)),),
        generation=Generation(20, temperature=1.5, top_p=0.9),
        seed=3,
    )
    with ThreadPoolExecutor(4) as threads:
        texts = {answer.text for answer in threads.map(engine.answer, [hot] * 4)}
    assert len(texts) == 1
    assert texts != {engine.answer(Request(hot.turns, generation=hot.generation, seed=4)).text}
    assert texts != {engine.answer(Request(hot.turns, generation=Generation(20))).text}


@pytest.mark.parametrize("temperature", [1e-30, 1e-40, 5e-324])
def test_the_smallest_temperature_is_greedy(made, temperature: float) -> None:
    """Logits divided by it are infinite."""
    engine, turns = made(), (Turn("user", ("Tell me all.",)),)
    cold = engine.answer(Request(turns, generation=Generation(8, temperature)))
    assert cold.text == engine.answer(Request(turns, generation=Generation(8))).text


def test_files_in_the_house_are_bounded_together(made) -> None:
    """Fetched ones, too, which no body holds."""
    engine = made(queue=Queue(running=1, held_bytes=len(png()) * 3 // 2))
    end = threading.Event()
    engine.submit(
        question("Tell me all.", still(), tokens=200),
        lambda event: None if is_piece(event) else end.set(),
    )
    with pytest.raises(Busy, match="holds as many images and videos as it can"):
        engine.answer(question("?", still("blue")))
    assert end.wait(PATIENCE)
    engine.answer(question("?", still("blue"), tokens=1))


def test_who_leaves_is_not_prepared(made, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, going_on = made(queue=Queue(preparers=1)), threading.Event()
    prepare, prepared = engine._preparation.prepare, []

    def slowly(request: Request):
        assert going_on.wait(PATIENCE)
        prepared.append(request)
        return prepare(request)

    monkeypatch.setattr(engine._preparation, "prepare", slowly)
    ends: queue.SimpleQueue[Event | Refused] = queue.SimpleQueue()
    engine.submit(question(tokens=1), lambda event: None if is_piece(event) else ends.put(event))
    engine.submit(
        question(tokens=1), lambda event: None if is_piece(event) else ends.put(event)
    ).cancelled = True
    going_on.set()
    assert {type(ends.get(timeout=PATIENCE)) for _ in range(2)} == {Finished, Refused}
    assert len(prepared) == 1
    assert value(engine, "m3_requests_total", outcome="cancelled") == 1


def test_a_stop_text_ends_the_answer_before_it(made) -> None:
    engine = made()
    whole = engine.answer(long_request()).text
    stop = whole[20:23]
    cut = engine.answer(long_request(stop=(stop,)))
    assert cut.text == whole[: whole.index(stop)].rstrip()
    assert cut.reason == "stop"


LIMITED = [
    (
        Limits(turns=1),
        Request((Turn("user", ("a",)), Turn("assistant", ("b",)))),
        "has 2 messages, .* limit of 1",
    ),
    (Limits(images=1), question("?", still(), still()), "has 2 images, .* limit of 1"),
    (
        Limits(characters=10),
        question("What is it, then?"),
        "has 17 characters of text, .* limit of 10",
    ),
    (Limits(new_tokens=5), question(), "has 12 new tokens, .* limit of 5"),
    (Limits(image_bytes=50), question("?", still()), "bytes in an image, .* limit of 50"),
    (
        Limits(pixels=2000),
        question("?", still()),
        "60 x 40 = 2,400 pixels, more than the limit of 2,000: send a smaller copy of the picture$",
    ),
    (
        Limits(prompt_tokens=100),
        question("?", still()),
        "the prompt has 15. tokens, 144 of them visual, more than this server's limit of 100",
    ),
    (Limits(), question("?", Visual("image", b"GIF89a nothing")), "image of 14 bytes"),
    (Limits(), question("?", Visual("image", b"")), "the image file is empty"),
    (Limits(), question("?", Visual("video", b"no video")), "not a video that can be read"),
    (Limits(), question("?", still(), scale=7), "choose one of 1, 4, 9, 16, 36, 144"),
    (Limits(), question("?", still(), scale="144@24"), "choose one of 1, 4, 9, 36"),
    (Limits(), question("?", still(), scale="9@26"), "choose a multiple of 4 pixels"),
    (Limits(), question("?", still(), scale="9@96"), "at most 48 pixels"),
    (Limits(), question("?", still(), scale="auto"), "has no router to choose budgets"),
    (Limits(), question("?", still(), scale="36+"), "the scale '36\\+' cannot be read"),
    (
        Limits(),
        question("x" * 150_000),
        "the prompt has 150,... tokens, and the model reads at most .* with the answer: shorten "
        "the text",
    ),
]


@pytest.mark.parametrize(
    ("limits", "request_", "words"), LIMITED, ids=lambda value: str(value)[:30]
)
def test_a_refused_request_says_why(made, limits: Limits, request_: Request, words: str) -> None:
    engine = made(limits=limits)
    with pytest.raises(Refused, match=words) as caught:
        engine.answer(request_)
    assert caught.value.status == 400
    assert value(engine, "m3_requests_total", outcome="refused") == 1


@pytest.mark.parametrize(
    ("limits", "sampling", "words"),
    [
        (
            Limits(frames=3),
            Sampling(num_frames=4),
            "4 frames of a video were asked for, more than the limit of 3",
        ),
        (Limits(frames=3), Sampling(fps=8), "24 frames, more than the limit of 3"),
        (Limits(), Sampling(fps=1e308), "frames, more than the limit of 64"),
        (
            Limits(video_pixels=5000),
            Sampling(),
            "8 of its frames have .* pixels, more than the limit of 5,000",
        ),
        (Limits(video_seconds=2.0), Sampling(), "3 s long, more than the limit of 2 s"),
        (
            Limits(video_bytes=100),
            Sampling(),
            "bytes in a video, more than this server's limit of 100",
        ),
    ],
)
def test_limits_of_videos(made, tmp_path, limits: Limits, sampling: Sampling, words: str) -> None:
    write_video(tmp_path / "short.mp4")
    video = Visual("video", (tmp_path / "short.mp4").read_bytes(), sampling=sampling)
    with pytest.raises(Refused, match=words):
        made(limits=limits).answer(question("?", video))


def test_a_control_token_in_a_question_is_text(made) -> None:
    engine = made()
    answer = engine.answer(question("Is <image> a mark, or <|im_end|>?", still(scale=1)))
    assert answer.usage.visual_tokens_of == (1,)
    plain = engine.answer(question("Is a mark, or ?", still(scale=1)))
    assert answer.usage.prompt_tokens > plain.usage.prompt_tokens


def test_a_full_house_refuses_and_takes_again(made) -> None:
    engine = made(queue=Queue(running=1, waiting=1, retry_after_seconds=7))
    ends: list[threading.Event] = []

    def submit() -> None:
        end = threading.Event()
        ends.append(end)
        engine.submit(long_request(), lambda event: None if is_piece(event) else end.set())

    submit()
    submit()
    with pytest.raises(Busy, match="2 requests under way") as caught:
        submit()
    assert (caught.value.status, caught.value.retry_after_seconds) == (429, 7)
    for end in ends[:2]:
        assert end.wait(PATIENCE)
    engine.answer(question())


def test_who_leaves_makes_room(made) -> None:
    engine = made(limits=Limits(new_tokens=3000), queue=Queue(running=1))

    async def leave() -> None:
        async with aclosing(engine.stream(question("Tell me all.", tokens=3000))) as events:
            async for _ in events:
                return

    asyncio.run(leave())
    engine.answer(question(tokens=1))
    assert value(engine, "m3_requests_total", outcome="cancelled") == 1
    assert value(engine, "m3_new_tokens_total") < 3000


def test_time_is_bounded(made) -> None:
    """An answer under way ends where it is; a request that still waits then is refused."""
    engine = made(limits=Limits(seconds=PATIENCE, new_tokens=3000), queue=Queue(running=1))
    ends: queue.SimpleQueue[Event | Refused] = queue.SimpleQueue()
    begun = threading.Event()

    def tell(event: Event | Refused) -> None:
        if is_piece(event):
            begun.set()
        else:
            ends.put(event)

    jobs = [engine.submit(question("Tell me all.", tokens=3000), tell)]
    assert begun.wait(PATIENCE)
    jobs.append(engine.submit(question("Tell me all.", tokens=3000), tell))
    for job in reversed(jobs):  # their time is over
        job.deadline = job.accepted
    second, first = sorted(
        (ends.get(timeout=PATIENCE) for _ in range(2)), key=lambda end: isinstance(end, Finished)
    )
    assert isinstance(first, Finished)
    assert first.reason == "time"
    assert 0 < first.usage.new_tokens < 3000
    assert isinstance(second, Busy)
    assert "waited 120 s for its turn" in str(second)


def test_a_file_that_is_never_read_to_its_end_is_not_waited_for(
    made, monkeypatch: pytest.MonkeyPatch
) -> None:
    from m3.serving.engine import engine as module

    engine, going_on = made(limits=Limits(seconds=0.1)), threading.Event()
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(Preparation, "prepare", lambda *_: going_on.wait(PATIENCE) and None)

    async def ask() -> None:
        async for _ in engine.stream(question()):
            pass

    with pytest.raises(Refused, match="could not be read within 0.1 s") as caught:
        asyncio.run(ask())
    going_on.set()
    monkeypatch.undo()
    assert caught.value.status == 408


class Memory:
    """A decoder that runs out of memory once, at its next prompt or at its next token."""

    def __init__(self, model: M3ForConditionalGeneration) -> None:
        self.fails_at: str | None = None
        self.handle = model.model.language_model.register_forward_pre_hook(
            self.look, with_kwargs=True
        )

    def look(self, _: object, __: object, given: dict) -> None:
        at = "token" if given["inputs_embeds"].shape[1] == 1 else "prompt"
        if at == self.fails_at:
            self.fails_at = None
            raise torch.OutOfMemoryError("tried to allocate 20.00 GiB")


@pytest.fixture
def memory(loaded) -> Iterator[Memory]:
    memory = Memory(loaded[0])
    yield memory
    memory.handle.remove()


@pytest.mark.parametrize("fails_at", ["prompt", "token"])
def test_memory_that_runs_out_does_not_end_the_server(
    made, memory: Memory, fails_at: str, caplog
) -> None:
    """A prompt that finds no room is refused alone; where a step of the batch finds none, all of it
    is.

    Others are answered.
    """
    engine = made()
    first, second = long_request(), question("What is it?", still())
    expected = [engine.answer(request).text for request in (first, second)]
    ends: queue.SimpleQueue[Event | Refused] = queue.SimpleQueue()
    begun = threading.Event()
    engine.submit(first, lambda event: begun.set() if is_piece(event) else ends.put(event))
    assert begun.wait(PATIENCE)
    memory.fails_at = fails_at
    if fails_at == "prompt":
        with pytest.raises(
            Busy, match="ran out of memory with this request .* at a smaller scale"
        ) as caught:
            engine.answer(second)
        assert caught.value.status == 503
    end = ends.get(timeout=PATIENCE)
    if fails_at == "prompt":
        assert isinstance(end, Finished)
        assert end.text == expected[0]
    else:
        assert isinstance(end, Busy)
        assert end.status == 503
    assert [engine.answer(request).text for request in (first, second)] == expected
    assert value(engine, "m3_requests_total", outcome="failed") == 1
    assert "lower queue.batch_tokens" in caplog.text


def test_closing_finishes_what_was_accepted(made) -> None:
    engine = made(queue=Queue(running=2))
    ends: list[Event | Refused] = []
    for _ in range(6):
        engine.submit(
            question("Tell me all.", still(), tokens=30),
            lambda event: None if is_piece(event) else ends.append(event),
        )
    engine.close()
    assert [type(end) for end in ends] == [Finished] * 6
    with pytest.raises(Busy, match="shutting down") as caught:
        engine.answer(question())
    assert caught.value.status == 503
    assert not engine.is_alive
