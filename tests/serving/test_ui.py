"""The page in a real browser, over a small random model, whose answers go on until they are
stopped.
"""

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from required_tests import BROWSER, needs_browser
from serving_files import PATIENCE, png, wait_until
from videos import write_video

from m3.serving.engine.scheduler import Scheduler
from m3.serving.settings import Limits, Queue, Settings

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed (extra: dev)"
)
pytestmark = [pytest.mark.slow, needs_browser]
TRAINED = (1, 4, 9, 36, 144)
TOKENS = 3000
"""Of an answer that is stopped long before."""
NAMED = """() => [...document.querySelectorAll("input, textarea, select, button")].filter((e) => e.checkVisibility() && !(
  e.ariaLabel || e.title || e.innerText.trim() || [...(e.labels || [])].some((label) => label.innerText.trim())
)).map((e) => e.outerHTML.slice(0, 200))"""
"""Controls without a name."""


class Visit:
    """An open page, what it complained about and what it asked the network for."""

    def __init__(
        self, browser: Any, address: str, width: int = 1280, scheme: str = "light"
    ) -> None:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page, self.address, self.said, self.asked = context.new_page(), address, [], []
        self.page.set_default_timeout(PATIENCE * 1000)
        self.page.on(
            "console", lambda one: self.said.append(one.text) if one.type == "error" else None
        )
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(f"{address}/ui")

    def upload(self, file: Path) -> None:
        remove = self.page.get_by_label("Remove Image")
        if remove.is_visible():
            remove.click()
            remove.wait_for(state="hidden")
        with self.page.expect_response("**/gradio_api/upload*"):
            self.page.set_input_files("#m3-image input[type=file]", file)
        remove.wait_for()

    def ask(self, question: str) -> None:
        self.page.get_by_label("Question").fill(question)
        self.page.click("#m3-ask")

    def has(self, element: Any, **properties: str) -> None:
        """Waits until it has them: `value`, or an attribute of it."""
        for name, expected in properties.items():
            if name == "value":
                playwright.expect(element).to_have_value(expected, timeout=PATIENCE * 1000)
            else:
                playwright.expect(element).to_have_attribute(
                    name, expected, timeout=PATIENCE * 1000
                )

    def close(self) -> None:
        """With what it still has under way, or the next visit finds no place."""
        self.page.context.close()
        wait_until(lambda: counted(self.address, "m3_requests_running") == 0)

    def wait(self, condition: str) -> None:
        self.page.wait_for_function(condition)

    def rest(self, part: str) -> None:
        self.page.locator(f"{part} [aria-busy=false]").wait_for()

    def save(self, name: str, folder: Path) -> Path:
        with self.page.expect_download() as found:
            self.page.get_by_role("button", name=name).click()
        found.value.save_as(folder / found.value.suggested_filename)
        return folder / found.value.suggested_filename

    @property
    def message(self) -> str:
        self.page.locator("#m3-message .m3-alert:not(:empty)").wait_for()
        return self.page.locator("#m3-message").inner_text()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as browsers:
        camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        arguments = ["--no-sandbox", *camera]
        yield browsers.chromium.launch(
            executable_path=BROWSER, args=arguments, timeout=PATIENCE * 1000
        )


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


def counted(address: str, name: str) -> float:
    lines = (
        urllib.request.urlopen(f"{address}/metrics", timeout=PATIENCE).read().decode().splitlines()
    )
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def until(address: str, name: str, expected: float) -> None:
    wait_until(lambda: counted(address, name) == expected)


def until_named(page: Any) -> None:
    """Until every control that is seen has a name; fails with those that never get one."""
    try:
        page.wait_for_function(f"() => ({NAMED})().length === 0")
    except playwright.TimeoutError:
        assert page.evaluate(NAMED) == []


def shorten(visit: Visit, tokens: int) -> None:
    visit.page.get_by_role("button", name="More").click()
    number = visit.page.get_by_label("number input for Most tokens of an answer")
    slider = visit.page.get_by_label("range slider for Most tokens of an answer")

    def is_set() -> bool:  # a page that is still being made does not hear of it
        if slider.input_value() != str(tokens):
            number.fill(str(tokens))
            number.press("Tab")
            visit.page.wait_for_timeout(200)
        return slider.input_value() == str(tokens)

    wait_until(is_set)


def test_ask_slide_compare_and_save(visit: Visit, tmp_path: Path):
    page = visit.page
    (tmp_path / "red.png").write_bytes(png("red", (60, 40)))
    visit.upload(tmp_path / "red.png")
    shorten(visit, 8)
    page.locator("#m3-scale-input").focus()
    visit.has(page.locator("#m3-scale-input"), **{"aria-valuetext": "144 visual tokens"})
    page.keyboard.press("ArrowLeft")
    visit.has(page.locator("#m3-scale-input"), **{"aria-valuetext": "36 visual tokens"})
    visit.ask("What\nis it?")
    visit.rest("#m3-talk")
    assert "Scale 36 · 36 visual tokens · first token" in page.locator("#m3-talk").inner_text()
    visit.has(page.get_by_label("Question"), value="")

    seen = counted(visit.address, "m3_tower_images_total")
    page.get_by_label("Question").fill("Which colour?")
    page.click("#m3-compare")
    visit.rest("#m3-comparison")
    assert page.locator("#m3-comparison h3").all_inner_texts() == [
        f"Scale {scale}" for scale in TRAINED
    ]
    assert page.get_by_label("Question").input_value() == "Which colour?"
    # the picture was seen for the conversation
    assert counted(visit.address, "m3_tower_images_total") == seen == 1

    record = json.loads(visit.save("Save comparison as JSON", tmp_path).read_text())
    assert [answer["visual_tokens"] for answer in record["answers"]] == list(TRAINED)
    assert all(
        answer["question"] == "Which colour?" and answer["seconds"] > 0
        for answer in record["answers"]
    )
    with Image.open(visit.save("Save comparison as PNG", tmp_path)) as picture:
        assert picture.width == 1200
        assert (
            sum(number for number, colour in picture.getcolors(2**20) if colour[:3] == (254, 0, 0))
            > 5 * 1000
        )
    page.get_by_role("tab", name="Conversation").click()
    with Image.open(visit.save("Save conversation as PNG", tmp_path)) as picture:
        assert picture.width == 720
    assert (
        json.loads(visit.save("Save conversation as JSON", tmp_path).read_text())["answers"][0][
            "question"
        ]
        == "What\nis it?"
    )
    assert visit.said == []
    assert [
        url for url in visit.asked if not url.startswith((visit.address, "data:", "blob:"))
    ] == []


def test_errors_are_told_and_nothing_is_lost(visit: Visit, tmp_path: Path):
    visit.page.get_by_label("Question").fill("What\nis it?")
    visit.page.click("#m3-compare")
    assert (
        visit.message == "Choose a picture or a video first: there is nothing to compare scales on."
    )
    (tmp_path / "cut.png").write_bytes(png("red", (400, 400))[:300])
    visit.upload(tmp_path / "cut.png")
    visit.page.click("#m3-ask")
    visit.wait(
        "() => document.querySelector('.m3-alert').innerText.includes('damaged or cut short')"
    )
    (tmp_path / "large.png").write_bytes(png("red", (2001, 2000)))
    visit.upload(tmp_path / "large.png")
    visit.page.click("#m3-compare")
    visit.wait(
        "() => document.querySelector('.m3-alert').innerText.includes('more than the limit "
        "of 4,000,000')"
    )
    assert visit.page.get_by_label("Question").input_value() == "What\nis it?"
    assert visit.said == []


@pytest.mark.usefixtures("slow_answers")
def test_a_full_house_is_told_and_stop_stops(visit: Visit, browser: Any):
    other = Visit(browser, visit.address, 400, "dark")
    cancelled = counted(visit.address, 'm3_requests_total{outcome="cancelled"}')
    shorten(visit, TOKENS)
    visit.ask("Go on.")
    visit.wait(
        "() => document.querySelector('.m3-said') && "
        "document.querySelector('.m3-said').innerText.length > 20"
    )
    other.ask("And I?")
    assert "1 requests under way and takes no more" in other.message
    assert other.page.get_by_label("Question").input_value() == "And I?"
    visit.page.click("#m3-stop")
    visit.rest("#m3-talk")
    until(visit.address, 'm3_requests_total{outcome="cancelled"}', cancelled + 1)
    until(visit.address, "m3_requests_running", 0)
    other.ask("And I now?")
    other.wait("() => document.querySelector('.m3-said')")
    other.close()


@pytest.mark.usefixtures("slow_answers")
def test_a_closed_tab_cancels_its_answer(visit: Visit):
    """The answer would have thousands of tokens; its row is free long before."""
    until(visit.address, "m3_requests_running", 0)
    cancelled, written = (
        counted(visit.address, name)
        for name in ('m3_requests_total{outcome="cancelled"}', "m3_new_tokens_total")
    )
    shorten(visit, TOKENS)
    visit.ask("Go on.")
    visit.wait(
        "() => document.querySelector('.m3-said') && "
        "document.querySelector('.m3-said').innerText.length > 20"
    )
    until(visit.address, "m3_requests_running", 1)
    visit.page.close()
    until(visit.address, 'm3_requests_total{outcome="cancelled"}', cancelled + 1)
    until(visit.address, "m3_requests_running", 0)
    assert counted(visit.address, "m3_new_tokens_total") - written < TOKENS


def test_a_photo_of_the_camera_is_asked_about(visit: Visit):
    seen = counted(visit.address, "m3_tower_images_total")
    picture = visit.page.locator("#m3-image")
    picture.get_by_label("Capture from camera").click()
    picture.get_by_text("Click to Access Webcam").click()
    visit.wait("() => (document.querySelector('#m3-image video') || {}).videoWidth > 0")
    with visit.page.expect_response("**/gradio_api/upload*"):
        picture.get_by_label("capture photo").click()
    picture.get_by_label("Remove Image").wait_for()
    shorten(visit, 4)
    visit.ask("What is it?")
    visit.rest("#m3-talk")
    assert "Scale 144 · 144 visual tokens" in visit.page.locator("#m3-talk").inner_text()
    assert counted(visit.address, "m3_tower_images_total") == seen + 1
    assert visit.said == []


def test_a_video_is_asked_about_and_compared(visit: Visit, tmp_path: Path):
    write_video(tmp_path / "short.mp4")
    page = visit.page
    # the server knows which of the two is asked about
    with page.expect_response("**/gradio_api/run/**"):
        page.get_by_role("tab", name="Video").click()
    with page.expect_response("**/gradio_api/upload*"):
        page.set_input_files("#m3-video input[type=file]", tmp_path / "short.mp4")
    page.locator("#m3-video video").wait_for()
    shorten(visit, 4)
    visit.ask("What happens?")
    visit.rest("#m3-talk")
    assert f"{8 * 144} visual tokens" in page.locator("#m3-talk").inner_text()
    page.get_by_label("Question").fill("What happens?")
    page.click("#m3-compare")
    visit.rest("#m3-comparison")
    assert [
        f"{8 * scale} visual tokens" in page.locator("#m3-comparison").inner_text()
        for scale in TRAINED
    ] == [True] * 5
    assert visit.said == []


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_every_control_has_a_name_and_keys_reach_it(
    browser: Any, address: str, width: int, scheme: str
):
    visit = Visit(browser, address, width, scheme)
    page = visit.page
    page.get_by_role("button", name="Which bar is the tallest?").click()
    page.get_by_label("Remove Image").wait_for()
    visit.has(page.get_by_label("Question"), value="Which bar is the tallest?")
    until_named(page)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    dark = page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).every((c) => c "
        "< 60)"
    )
    assert dark == (scheme == "dark")
    page.evaluate("document.activeElement.blur()")
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        focused = page.evaluate(
            "document.activeElement.id || document.activeElement.innerText || "
            "document.activeElement.ariaLabel"
        )
        reached.add(str(focused).split("\n")[0])
    expected = (
        "Ask",
        "Compare scales",
        "Stop",
        "Upload file",
        "Video",
        "Conversation",
        "Comparison",
        "Save conversation as PNG",
    )
    ids = {"Ask": "m3-ask", "Compare scales": "m3-compare", "Stop": "m3-stop"}
    assert {ids.get(name, name) for name in expected} | {"m3-scale-input"} <= reached
    page.get_by_role("tab", name="Video").click()
    until_named(page)
    assert visit.said == []
    visit.close()


def test_a_key_is_asked_for(browser: Any, serve: Callable[[Settings], AbstractContextManager[str]]):
    with serve(Settings(name="tiny", ui=True, api_key="secret")) as address:
        for path in (
            "config",
            "gradio_api/queue/data?session_hash=a",
            "gradio_api/file=/etc/passwd",
        ):
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(f"{address}/ui/{path}")
        visit = Visit(browser, address)
        for key in ("", "wrong", "secret"):
            visit.page.get_by_label("password").fill(key)
            with visit.page.expect_response("**/ui/login"):
                visit.page.get_by_role("button", name="Login").click()
            if key != "secret":
                visit.page.get_by_text("Incorrect Credentials").wait_for()
                visit.page.reload()  # what was said of the last try goes
        visit.page.get_by_label("Question").wait_for()
        visit.page.context.close()
