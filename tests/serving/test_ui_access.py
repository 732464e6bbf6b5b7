"""Who reads the page of the server how: at a phone's width, by keyboard, by a screen reader, in the
dark; and what it says without being asked.
"""

import io
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from axe_check import violations
from page_visit import Visit, open_browser, playwright
from PIL import Image
from required_tests import needs_browser
from serving_files import PATIENCE, png, wait_until

from m3.serving.cluster.config import Fleet, Served
from m3.serving.cluster.local import create_local
from m3.serving.http.server import make_server
from m3.serving.settings import Settings

pytestmark = [pytest.mark.slow, needs_browser]
LOOKS = [(width, scheme) for width in (1280, 400) for scheme in ("light", "dark")]
IN_SIGHT = """(element) => {
  const { top, bottom } = element.getBoundingClientRect();
  return top >= 0 && bottom <= innerHeight;
}"""
SMALL = """() => [...document.querySelectorAll("button, input, select, textarea, summary, a")]
  .filter((e) => e.checkVisibility()).map((e) => [e.id || e.outerHTML, e.getBoundingClientRect()])
  .filter(([, box]) => box.width < 24 || box.height < 24).map(([name]) => name)"""
LABELS = """() => {
  const slider = document.querySelector("#scale").getBoundingClientRect();
  const card = document.querySelector("#scale-box").getBoundingClientRect();
  const boxes = [...document.querySelectorAll("#marks span")].map((e) => e.getBoundingClientRect());
  const step = (slider.width - 16) / (boxes.length - 1);
  return boxes.map((box, n) => [box.left + box.width / 2 - (slider.left + 8 + n * step),
    box.left >= card.left && box.right <= card.right]);
}"""
"""How far each label is from its notch; whether it is within the card."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(serve: Callable[[Settings], AbstractContextManager[str]]) -> Iterator[str]:
    with serve(Settings(name="tiny", ui=True)) as address:
        yield address


@pytest.fixture
def phone(browser: Any, address: str) -> Iterator[Visit]:
    visit = Visit(browser, address, 400, height=800)
    playwright.expect(visit.page.locator("#title")).to_have_text("M3 · tiny")
    yield visit
    visit.close()


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_axe_finds_nothing_on_the_page(browser: Any, address: str, width: int, scheme: str):
    visit = Visit(browser, address, width, scheme)
    page = visit.page
    playwright.expect(page.locator("#title")).to_have_text("M3 · tiny")
    assert violations(page) == []
    page.get_by_role("button", name="Which bar is the tallest?").click()
    page.get_by_label("Remove chart.png").wait_for()
    visit.options(tokens=4)
    visit.ask("Which bar is the tallest?")
    visit.rest("#log")
    assert violations(page) == []
    visit.compare("Which bar is the tallest?")
    assert violations(page) == []
    page.get_by_label("Question", exact=True).fill("")
    page.click("#ask")
    visit.says("Write a question first.")
    assert violations(page) == []
    page.get_by_role("button", name="Camera").click()
    page.get_by_role("button", name="Take picture").wait_for()
    assert violations(page) == []
    assert visit.said == []
    visit.close()


def test_a_phone_shows_the_answer_after_ask_and_compare(phone: Visit):
    page = phone.page
    page.get_by_role("button", name="Which bar is the tallest?").click()
    page.get_by_label("Remove chart.png").wait_for()
    phone.options(tokens=4)
    phone.ask("Which bar is the tallest?")
    phone.rest("#log")
    assert page.locator(".said").evaluate(IN_SIGHT)
    page.evaluate("() => scrollTo(0, 0)")
    phone.compare("Which bar is the tallest?")
    for shown in ("#verdict", "#cards li:first-child"):
        assert page.locator(shown).evaluate(IN_SIGHT), shown
    assert phone.said == []


@pytest.mark.parametrize("width", [1280, 720, 400])
def test_buttons_are_as_high_as_each_other_and_large_enough(browser: Any, address: str, width: int):
    visit = Visit(browser, address, width)
    page = visit.page
    page.get_by_role("button", name="Which bar is the tallest?").click()
    page.get_by_label("Remove chart.png").wait_for()
    visit.options()
    boxes = [page.locator(name).bounding_box() for name in ("#ask", "#compare", "#stop")]
    assert len({(box["y"], box["height"]) for box in boxes}) == 1
    playwright.expect(page.locator("#stop")).to_be_disabled()
    assert page.evaluate(SMALL) == []
    labels = page.evaluate(LABELS)
    assert len(labels) == 6
    assert [offset for offset, _ in labels] == pytest.approx([0] * 6, abs=1.5)
    assert all(is_within for _, is_within in labels)
    playwright.expect(page.locator("#marks-note")).to_contain_text("was not trained at it")
    page.locator("#scale").evaluate("(slider) => { slider.value = 3; slider.oninput(); }")
    visit.has(page.locator("#scale"), **{"aria-valuetext": "16 visual tokens, not trained"})
    visit.close()


def test_answers_lead_their_cards_and_equal_ones_say_so(phone: Visit):
    """The server's words are put in: 36 says what 144 says, 9 is refused, the others differ."""
    words = {1: "red", 4: "blue", 36: "green", 144: "green "}

    def answer(route: Any) -> None:
        body = route.request.post_data_json
        scale = body["matryoshka_vis_token_scale"]
        if not body.get("stream"):
            return route.fulfill(json={})
        if scale == 9:
            return route.fulfill(status=503, json={"error": {"message": "no room"}})
        event = '{"choices": [{"delta": {"content": "%s"}, "finish_reason": "stop"}]}'
        return route.fulfill(body=f"data: {event % words[scale]}\n\n")

    page = phone.page
    page.route("**/v1/chat/completions", answer)
    page.get_by_role("button", name="Which bar is the tallest?").click()
    page.get_by_label("Remove chart.png").wait_for()
    phone.compare("Which bar is the tallest?")
    marks = page.locator("#cards .likeness")
    differs, same = "≠ differs from 144", "= same as at 144"
    playwright.expect(marks).to_have_text([differs, differs, "", same, "the largest"])
    verdict = page.locator("#verdict")
    playwright.expect(verdict).to_contain_text("1 of 3 other answers are the same as at 144.")
    playwright.expect(verdict).to_contain_text("too little to rank them by time")
    assert not re.search(r"\bm?s\b", page.locator("#cards").inner_text()), "no times on cards"
    sizes = page.locator("#cards li:first-child").evaluate(
        "(card) => ['.answer', 'h3', '.caption', '.likeness'].map((name) =>"
        " parseFloat(getComputedStyle(card.querySelector(name)).fontSize))"
    )
    assert sizes[0] == max(sizes) > 1.2 * sorted(sizes)[-2]
    boxes = [card.bounding_box() for card in page.locator("#cards li").all()]
    assert len({(box["x"], box["width"]) for box in boxes}) == 1, "one under the other"
    page.set_viewport_size({"width": 1280, "height": 800})
    assert len({card.bounding_box()["y"] for card in page.locator("#cards li").all()}) == 1


def test_a_file_that_is_no_picture_is_told_at_once(phone: Visit, tmp_path: Path):
    (tmp_path / "notes.png").write_bytes(b"hello")
    phone.upload(tmp_path / "notes.png")
    page = phone.page
    told = page.locator("#pictures .refusal")
    playwright.expect(told).to_contain_text(
        "notes.png is no picture or video that can be read. Remove it and choose another file"
    )
    assert page.locator("#pictures img").count() == 0
    phone.ask("What is it?")
    phone.says("notes.png is no picture or video that can be read.")
    assert phone.bodies == [], "the model was not asked"
    page.get_by_label("Remove notes.png").click()
    phone.upload(_tiff(tmp_path / "red.tiff"))
    playwright.expect(page.locator("#pictures")).to_contain_text("the browser cannot show it")
    assert page.locator(".refusal").count() == 0


def _tiff(path: Path) -> Path:
    """Of a format that the server reads and Chromium does not."""
    Image.open(io.BytesIO(png())).save(path, "TIFF")
    return path


def test_a_question_without_a_picture_gets_a_hint(phone: Visit):
    phone.options(tokens=4)
    phone.ask("What is the background?")
    phone.rest("#log")
    hint = phone.page.locator(".said .hint")
    playwright.expect(hint).to_contain_text("No picture was sent with this question")
    phone.page.get_by_role("button", name="Which bar is the tallest?").click()
    phone.page.get_by_label("Remove chart.png").wait_for()
    phone.ask("Which bar is the tallest?")
    phone.rest("#log")
    playwright.expect(hint).to_have_count(0)


def test_keys_alone_choose_a_scale_ask_and_compare(phone: Visit):
    """From the top of the page with Tab, Enter and arrows."""
    page = phone.page

    def tab_to(name: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("() => document.activeElement.id") == name:
                return
        raise AssertionError(f"Tab does not reach {name}")

    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the first example
    page.get_by_label("Remove scene.png").wait_for()
    order = ["choose", "open-camera", "question", "scale", "ask", "compare", "stop", "talk-tab"]
    for name in order[:4]:
        tab_to(name)
    page.keyboard.press("ArrowLeft")
    phone.has(page.locator("#scale"), **{"aria-valuetext": "36 visual tokens"})
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    phone.rest("#log")
    assert "Scale 36 · 36 visual tokens" in phone.talk
    for name in order[3:]:
        tab_to(name)
    roles = "[role=log], [role=status], [role=alert]"
    assert {one.get_attribute("id") for one in page.locator(roles).all()} >= {
        "log",
        "verdict",
        "message",
    }


@pytest.fixture(scope="module")
def pair(
    tiny_checkpoint: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of two models behind one address, with the page."""
    path = str(tiny_checkpoint(tmp_path_factory.mktemp("pair") / "tiny"))
    fleet = Fleet(models=tuple(Served(path=path, name=name, device="cpu") for name in ("a", "b")))
    settings = Settings(ui=True, port=0)
    server = make_server(create_local(fleet, settings), replace(settings, port=0), "warning")
    thread = Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started or not thread.is_alive())
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(PATIENCE)


def test_two_models_are_compared_on_one_page(browser: Any, pair: str):
    visit = Visit(browser, pair)
    page = visit.page
    model = page.get_by_label("Model", exact=True)
    playwright.expect(model.locator("option")).to_have_text(["a", "b"])
    page.get_by_role("button", name="Which bar is the tallest?").click()
    page.get_by_label("Remove chart.png").wait_for()
    visit.options(tokens=4)
    visit.compare("Which bar is the tallest?")
    headings = [f"{name} · Scale {scale}" for name in "ab" for scale in (1, 4, 9, 36, 144)]
    assert page.locator("#cards h3").all_inner_texts() == headings
    rows = {card.bounding_box()["y"] for card in page.locator("#cards li").all()}
    assert len(rows) == 2, "a row for each model"
    playwright.expect(page.locator("#cards li:last-child .likeness")).to_have_text(
        "= same as a at 144"
    )
    model.select_option("b")
    playwright.expect(page.locator("#title")).to_have_text("M3 · b")
    page.get_by_label("Compare", exact=True).select_option("this model alone")
    visit.compare("Which bar is the tallest?")
    assert page.locator("#cards li").count() == 5
    visit.ask("Which bar is the tallest?")
    visit.rest("#log")
    assert {body["model"] for body in visit.bodies[-6:]} == {"b"}
    assert visit.said == []
    page.context.close()


@pytest.mark.parametrize("width", [1280, 400])
def test_axe_finds_nothing_with_two_models(browser: Any, pair: str, width: int):
    visit = Visit(browser, pair, width)
    playwright.expect(visit.page.get_by_label("Model", exact=True)).to_be_visible()
    assert violations(visit.page) == []
    assert visit.page.evaluate("() => document.documentElement.scrollWidth") == width
    visit.page.context.close()
