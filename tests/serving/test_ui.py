"""The page in a real browser, over a small random model, whose answers go on until they are
stopped.
"""

import hashlib
import json
import time
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from page_visit import Visit, counted, open_browser, playwright, until
from PIL import Image
from required_tests import needs_browser
from serving_files import data_address, png, serving
from videos import write_video

from m3.serving.engine.engine import Engine
from m3.serving.engine.scheduler import Scheduler
from m3.serving.settings import Limits, Queue, Settings

pytestmark = [pytest.mark.slow, needs_browser]
TRAINED = (1, 4, 9, 36, 144)
TOKENS = 3000
"""Of an answer that is stopped long before."""
NAMED = """() => [...document.querySelectorAll("input, textarea, select, button, summary, a, canvas")]
  .filter((e) => e.checkVisibility() && !e.ariaLabel && !e.innerText?.trim()
    && !e.querySelector("img[alt]") && ![...e.labels ?? []].some((label) => label.innerText.trim()))
  .map((e) => e.outerHTML.slice(0, 200))"""
"""Controls without a name."""
FOCUSED = """() => {
  const focused = document.activeElement;
  const { outlineStyle, outlineWidth } = getComputedStyle(focused);
  const isSeen = outlineStyle !== "none" && parseFloat(outlineWidth) >= 2;
  return [focused.id || focused.innerText, isSeen];
}"""
"""Name of the element that has the focus; whether that is seen."""
GIVE = """([kind, files]) => {
  const given = new DataTransfer(), how = { bubbles: true, cancelable: true };
  for (const [name, content] of files) {
    const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
    given.items.add(new File([bytes], name, { type: "image/png" }));
  }
  const event = kind === "paste" ? new ClipboardEvent(kind, { clipboardData: given, ...how })
    : new DragEvent(kind, { dataTransfer: given, ...how });
  return document.querySelector("#question").dispatchEvent(event);
}"""
"""Paste or drop files; whether the browser goes on with its own handling."""
EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script>\n&amp;"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(serve: Callable[[Settings], AbstractContextManager[str]]) -> Iterator[str]:
    limits = Limits(new_tokens=TOKENS, pixels=4_000_000)
    with serve(
        Settings(name="tiny", ui=True, limits=limits, queue=Queue(running=1, waiting=0))
    ) as address:
        yield address


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Visit]:
    visit = Visit(browser, address)
    yield visit
    visit.close()


@pytest.fixture
def slow_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer of `TOKENS` does not end before a test stops it, however slow the browser is."""
    turn = Scheduler.turn

    def turn_late(scheduler: Scheduler, newcomers: Any) -> Any:
        time.sleep(0.2)
        return turn(scheduler, newcomers)

    monkeypatch.setattr(Scheduler, "turn", turn_late)


@pytest.fixture
def red(tmp_path: Path) -> Path:
    (tmp_path / "red.png").write_bytes(png("red", (60, 40)))
    return tmp_path / "red.png"


def test_ask_slide_compare_and_save(visit: Visit, red: Path, tmp_path: Path):
    page = visit.page
    visit.upload(red)
    visit.options(tokens=8)
    scale = page.locator("#scale")
    scale.focus()
    visit.has(scale, **{"aria-valuetext": "144 visual tokens"})
    page.keyboard.press("ArrowLeft")
    visit.has(scale, **{"aria-valuetext": "36 visual tokens"})
    visit.ask("What\nis it?")
    visit.rest("#log")
    assert "Scale 36 · 36 visual tokens · first token" in visit.talk
    assert "cut at the limit of tokens" in visit.talk
    visit.has(page.get_by_label("Question", exact=True), value="")

    seen = counted(visit.address, "m3_tower_images_total")
    visit.compare("Which colour?")
    assert page.locator("#cards h3").all_inner_texts() == [f"Scale {scale}" for scale in TRAINED]
    labels = page.locator("#cards canvas").evaluate_all("(all) => all.map((one) => one.ariaLabel)")
    with_lines = ["The picture with lines between its tokens"] * 4
    assert labels == ["The picture by itself", *with_lines]
    visit.has(page.get_by_label("Question", exact=True), value="Which colour?")
    # the picture was seen for the conversation
    assert counted(visit.address, "m3_tower_images_total") == seen == 1

    record = json.loads(visit.save("Save comparison as JSON", tmp_path).read_text())
    digest = hashlib.sha256(red.read_bytes()).hexdigest()
    assert record["model"] == "tiny" and record["look_seconds"] > 0
    assert record["pictures"] == [{"kind": "image", "file": "red.png", "sha256": digest}]
    for answer, scale in zip(record["answers"], TRAINED, strict=True):
        assert answer["matryoshka_vis_token_scale"] == answer["visual_tokens"] == scale
        assert answer["question"] == "Which colour?" and answer["seconds"] > 0
        assert answer["reason"] == "length" and answer["is_trained"] and answer["error"] is None
    with Image.open(visit.save("Save comparison as PNG", tmp_path)) as picture:
        assert picture.width == 1200
        assert (
            sum(number for number, colour in picture.getcolors(2**20) if colour[:3] == (254, 0, 0))
            > 5 * 1000
        )
    page.get_by_role("tab", name="Conversation").click()
    with Image.open(visit.save("Save conversation as PNG", tmp_path)) as picture:
        assert picture.width == 720
    answers = json.loads(visit.save("Save conversation as JSON", tmp_path).read_text())["answers"]
    assert answers[0]["question"] == "What\nis it?"
    assert visit.said == []
    assert [
        url for url in visit.asked if not url.startswith((visit.address, "data:", "blob:"))
    ] == []


def test_a_conversation_goes_on_until_the_picture_changes(visit: Visit, red: Path, tmp_path: Path):
    visit.upload(red)
    visit.options(tokens=4)
    for question in ("One?", "Two?"):
        visit.ask(question)
        visit.rest("#log")
    first, second = (body["messages"] for body in visit.bodies)
    assert second[0] == first[0]
    assert first[0]["content"] == [
        {"type": "image_url", "image_url": {"url": data_address(red.read_bytes())}},
        {"type": "text", "text": "One?"},
    ]
    assert [message["role"] for message in second] == ["user", "assistant", "user"]
    assert second[1]["content"] in visit.talk and second[2]["content"] == "Two?"
    (tmp_path / "blue.png").write_bytes(png("blue"))
    visit.upload(tmp_path / "blue.png")
    visit.ask("Three?")
    visit.rest("#log")
    assert len(visit.bodies[2]["messages"]) == 1
    assert "Two?" not in visit.talk and "Three?" in visit.talk
    visit.page.get_by_role("button", name="New conversation").click()
    assert visit.talk == ""
    visit.page.get_by_role("button", name="Save conversation as PNG").click()
    visit.says("There is nothing to save yet.")
    assert visit.said == []


@pytest.mark.parametrize("way", ["files", "paste", "drop"])
def test_several_pictures_come_by(visit: Visit, way: str, red: Path, tmp_path: Path):
    (tmp_path / "blue.png").write_bytes(png("blue"))
    files = [red, tmp_path / "blue.png"]
    if way == "files":
        visit.upload(*files)
    else:
        given = [[file.name, b64encode(file.read_bytes()).decode()] for file in files]
        assert not visit.page.evaluate(GIVE, [way, given])
    playwright.expect(visit.page.get_by_label("Remove red.png")).to_be_visible()
    visit.options(tokens=4)
    visit.compare("Which colours?")
    cards = visit.page.locator("#cards")
    assert cards.locator("canvas").count() == 2 * 5
    assert [f"{2 * scale} visual tokens" in cards.inner_text() for scale in TRAINED] == [True] * 5
    visit.page.get_by_label("Remove red.png").click()
    playwright.expect(visit.page.get_by_label("Remove")).to_have_count(1)
    assert visit.said == []


def test_errors_are_told_and_nothing_is_lost(visit: Visit, tmp_path: Path):
    page = visit.page
    page.click("#ask")
    visit.says("Write a question first.")
    question = page.get_by_label("Question", exact=True)
    question.fill("What\nis it?")
    page.click("#compare")
    visit.says("Choose a picture or a video first: there is nothing to compare scales on.")
    (tmp_path / "cut.png").write_bytes(png("red", (400, 400))[:300])
    visit.upload(tmp_path / "cut.png")
    page.click("#ask")
    visit.says("damaged or cut short")
    (tmp_path / "large.png").write_bytes(png("red", (2001, 2000)))
    visit.upload(tmp_path / "large.png")
    page.click("#compare")
    visit.says("more than the limit of 4,000,000")
    (tmp_path / "huge.png").write_bytes(bytes(40_000_000))
    visit.upload(tmp_path / "huge.png")
    page.click("#ask")
    visit.says("the body is larger than this server's limit of 50,331,648 bytes")
    (tmp_path / "empty.png").write_bytes(b"")
    page.set_input_files("#files", tmp_path / "empty.png")
    visit.says("empty.png is empty (0 bytes).")
    visit.options(tokens=0)
    page.click("#ask")
    visit.says("Most tokens of an answer: expected a number from 1 to 3000.")
    assert question.input_value() == "What\nis it?"
    assert visit.talk == ""
    page.route("**/v1/chat/completions", lambda route: route.abort())
    visit.options(tokens=4)
    page.click("#ask")
    visit.says("The connection to the server failed. Is it still running?")
    assert question.input_value() == "What\nis it?"
    assert visit.said == []


def sse(*events: dict[str, Any]) -> str:
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events)


def test_what_the_model_and_the_server_say_is_text(visit: Visit):
    page = visit.page
    answer = sse(
        {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
        {"choices": [{"delta": {"content": EVIL[:20]}}]},
        {"choices": [{"delta": {"content": EVIL[20:]}}]},
        {"choices": [{"delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"visual_tokens": 0, "completion_tokens": 4}},
    )
    bodies = [answer, sse({"error": {"message": EVIL}})]
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=bodies.pop(0)))
    page.on("dialog", lambda dialog: visit.said.append(dialog.message))
    visit.ask(EVIL)
    visit.rest("#log")
    assert page.locator(".said .answer").text_content() == EVIL
    assert page.locator(".asked").text_content() == f"You: {EVIL}"
    visit.ask("Again?")
    visit.says(EVIL)
    assert page.locator("#log img, #log script, #message *").count() == 0
    assert page.locator(".said").count() == 1  # the answer that failed is gone
    visit.has(page.get_by_label("Question", exact=True), value="Again?")
    assert visit.said == []


def test_a_scale_that_is_refused_says_so_in_its_card(visit: Visit, red: Path):
    def refuse_nine(route: Any) -> None:
        if route.request.post_data_json["matryoshka_vis_token_scale"] == 9:
            route.fulfill(status=503, json={"error": {"message": "no room"}})
        else:
            route.continue_()

    visit.page.route("**/v1/chat/completions", refuse_nine)
    visit.upload(red)
    visit.options(tokens=4)
    visit.compare("Which colour?")
    captions = visit.page.locator("#cards .caption").all_inner_texts()
    assert captions[2] == "refused: no room"
    assert [caption.startswith("refused") for caption in captions].count(True) == 1
    assert visit.said == []


def test_the_slider_offers_scales_that_there_are(browser: Any, address: str):
    visit = Visit(browser, address)
    marks = visit.page.locator("#marks span")
    playwright.expect(marks).to_have_text(["1", "4", "9", "16", "36", "144"])
    playwright.expect(visit.page.locator("#chooser")).to_be_hidden()
    assert visit.page.locator(".untrained").all_inner_texts() == ["16"]
    visit.page.locator("#scale").focus()
    for _ in range(2):
        visit.page.keyboard.press("ArrowLeft")
    visit.options(tokens=4)
    visit.ask("And without a picture?")
    visit.rest("#log")
    assert visit.bodies[0]["matryoshka_vis_token_scale"] == 16
    assert "Scale" not in visit.talk and "0 visual tokens" in visit.talk

    card = json.loads(urllib.request.urlopen(f"{address}/v1/models").read())
    card["data"][0]["matryoshka_vis_token_scales"] = list(range(1, 145))
    visit.page.route("**/v1/models", lambda route: route.fulfill(json=card))
    visit.page.reload()
    playwright.expect(marks).to_have_text([str(scale) for scale in TRAINED])
    visit.close()


def test_the_page_shows_what_was_chosen(browser: Any, routed: Any, red: Path, tmp_path: Path):
    settings = Settings(name="tiny", ui=True)
    (tmp_path / "small.png").write_bytes(png("blue", (20, 24)))
    with serving(Engine(*routed, settings), settings) as address:
        visit = Visit(browser, address)
        visit.upload(red, tmp_path / "small.png")
        visit.options(tokens=4)
        chooser = visit.page.get_by_label("Chosen", exact=True)
        assert chooser.locator("option").all_inner_texts() == [
            "by the slider",
            "by the model",
            "by the size of the picture",
        ]
        for value in ("auto:rule", "auto"):
            chooser.select_option(value)
            playwright.expect(visit.page.locator("#scale")).to_be_disabled()
            visit.ask("What is it?")
            visit.rest("#log")
            assert visit.bodies[-1]["matryoshka_vis_token_scale"] == value
        assert "Scale 144+36@24, chosen by the size of the picture · 180 visual" in visit.talk
        assert ", chosen by the model · " in visit.talk
        record = json.loads(visit.save("Save conversation as JSON", tmp_path).read_text())
        assert record["answers"][0]["scale_per_image"] == [144, "36@24"]
        chooser.select_option("")
        playwright.expect(visit.page.locator("#scale")).to_be_enabled()
        visit.ask("What is it?")
        visit.rest("#log")
        assert visit.bodies[-1]["matryoshka_vis_token_scale"] == 144
        assert visit.page.evaluate(NAMED) == []
        assert visit.said == []
        visit.close()


@pytest.mark.usefixtures("slow_answers")
def test_a_full_house_is_told_and_stop_stops(visit: Visit, browser: Any):
    other = Visit(browser, visit.address, 400, "dark")
    cancelled = counted(visit.address, 'm3_requests_total{outcome="cancelled"}')
    visit.options(tokens=TOKENS)
    visit.ask("Go on.")
    visit.writes()
    other.ask("And I?")
    other.says("1 requests under way and takes no more")
    assert other.page.get_by_label("Question", exact=True).input_value() == "And I?"
    visit.page.click("#stop")
    visit.rest("#log")
    assert "stopped" in visit.talk
    until(visit.address, 'm3_requests_total{outcome="cancelled"}', cancelled + 1)
    until(visit.address, "m3_requests_running", 0)
    other.ask("And I now?")
    other.page.locator(".said .writing").wait_for()
    other.close()


@pytest.mark.usefixtures("slow_answers")
def test_a_closed_tab_cancels_its_answer(visit: Visit):
    """The answer would have thousands of tokens; its row is free long before."""
    until(visit.address, "m3_requests_running", 0)
    cancelled, written = (
        counted(visit.address, name)
        for name in ('m3_requests_total{outcome="cancelled"}', "m3_new_tokens_total")
    )
    visit.options(tokens=TOKENS)
    visit.ask("Go on.")
    visit.writes()
    until(visit.address, "m3_requests_running", 1)
    visit.page.close()
    until(visit.address, 'm3_requests_total{outcome="cancelled"}', cancelled + 1)
    until(visit.address, "m3_requests_running", 0)
    assert counted(visit.address, "m3_new_tokens_total") - written < TOKENS


def test_a_photo_of_the_camera_is_asked_about(visit: Visit):
    seen = counted(visit.address, "m3_tower_images_total")
    page = visit.page
    page.get_by_role("button", name="Camera").click()
    page.wait_for_function("() => document.querySelector('#camera-view').videoWidth > 0")
    page.get_by_role("button", name="Take picture").click()
    page.get_by_label("Remove photo.png").wait_for()
    assert page.evaluate(
        "() => document.querySelector('#camera-view').srcObject.getTracks().every((track) => "
        "track.readyState === 'ended')"
    )
    visit.options(tokens=4)
    visit.ask("What is it?")
    visit.rest("#log")
    assert "Scale 144 · 144 visual tokens" in visit.talk
    assert counted(visit.address, "m3_tower_images_total") == seen + 1
    assert visit.said == []


def test_a_video_of_the_camera_is_asked_about(visit: Visit):
    page = visit.page
    page.get_by_role("button", name="Camera").click()
    page.wait_for_function("() => document.querySelector('#camera-view').videoWidth > 0")
    page.get_by_role("button", name="Record video").click()
    now = page.evaluate("() => document.querySelector('#camera-view').currentTime")
    page.wait_for_function(
        f"() => document.querySelector('#camera-view').currentTime > {now} + 1.5"
    )
    page.get_by_role("button", name="End video").click()
    page.get_by_label("Remove recording.webm").wait_for()
    visit.options(tokens=4, frames=2)
    visit.ask("What happens?")
    visit.rest("#log")
    assert f"{2 * 144} visual tokens" in visit.talk
    assert visit.said == []


def test_a_video_is_asked_about_and_compared(visit: Visit, tmp_path: Path):
    """Chromium plays no MPEG-4 part 2, and says so in the page."""
    write_video(tmp_path / "short.mp4")
    visit.upload(tmp_path / "short.mp4")
    visit.page.get_by_text("the browser cannot show it").wait_for()
    visit.options(tokens=4)
    visit.ask("What happens?")
    visit.rest("#log")
    assert f"{8 * 144} visual tokens" in visit.talk
    visit.compare("What happens?")
    cards = visit.page.locator("#cards").inner_text()
    assert [f"{8 * scale} visual tokens" in cards for scale in TRAINED] == [True] * 5
    record = json.loads(visit.save("Save comparison as JSON", tmp_path).read_text())
    assert record["pictures"][0]["kind"] == "video" and record["pictures"][0]["num_frames"] == 8
    assert visit.said == []


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_every_control_has_a_name_and_keys_reach_it(
    browser: Any, address: str, width: int, scheme: str
):
    visit = Visit(browser, address, width, scheme)
    page = visit.page
    page.get_by_role("button", name="Which bar is the tallest?").click()
    page.get_by_label("Remove chart.png").wait_for()
    visit.has(page.get_by_label("Question", exact=True), value="Which bar is the tallest?")
    visit.options(tokens=4)
    assert page.evaluate(NAMED) == []
    assert page.evaluate("() => document.documentElement.scrollWidth") == width
    colour = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    channels = [int(part) for part in colour.partition("(")[2].rstrip(")").split(",")[:3]]
    assert all(channel < 60 for channel in channels) == (scheme == "dark")
    page.evaluate("() => document.activeElement.blur()")
    reached = {}
    for _ in range(40):
        page.keyboard.press("Tab")
        name, is_seen = page.evaluate(FOCUSED)
        reached[name] = is_seen
    buttons = ("choose", "open-camera", "ask", "compare", "stop", "new-talk")
    tabs = ("talk-tab", "comparison-tab", "log", "talk-png", "talk-json")
    options = ("question", "scale", "frames", "tokens", "temperature", "More settings", "×")
    examples = ("Which bar is the tallest?", "Which word is on the fourth line?")
    expected = {*buttons, *tabs, *options, *examples}
    assert expected <= set(reached)
    assert [name for name in expected if not reached[name]] == []
    page.locator("#question").press("Enter")
    visit.rest("#log")
    assert "144 visual tokens" in visit.talk
    page.locator("#question").fill("Which bar is the tallest?")
    page.locator("#compare").press("Enter")
    visit.rest("#cards")
    assert page.evaluate(NAMED) == []
    assert page.evaluate("() => document.documentElement.scrollWidth") == width
    page.get_by_role("button", name="Camera").press("Enter")
    page.get_by_role("button", name="Take picture").wait_for()
    assert page.evaluate(NAMED) == []
    page.keyboard.press("Escape")
    playwright.expect(page.locator("#camera")).to_be_hidden()
    assert visit.said == []
    visit.close()


def test_a_key_is_asked_for(browser: Any, serve: Callable[[Settings], AbstractContextManager[str]]):
    with serve(Settings(name="tiny", ui=True, api_key="secret")) as address:
        visit = Visit(browser, address)
        page = visit.page
        field, note = page.get_by_label("API key", exact=True), page.locator("#key-note")
        playwright.expect(note).to_have_text("This server wants its API key.")
        page.keyboard.press("Escape")
        visit.says("This server wants its API key.")
        visit.options(tokens=4)
        visit.ask("What is it?")
        field.fill("wrong")
        field.press("Enter")
        playwright.expect(note).to_have_text("This is not the server's API key.")
        field.fill("secret")
        page.get_by_role("button", name="Continue").click()
        visit.rest("#log")
        assert "0 visual tokens" in visit.talk
        page.reload()  # the tab remembers it
        playwright.expect(page.locator("#title")).to_have_text("M3 · tiny")
        assert not any("secret" in url or "wrong" in url for url in visit.asked)
        assert visit.said == []
        page.context.close()
