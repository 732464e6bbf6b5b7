"""The page in a real browser: from the disk, without a network, with mouse and keyboard.

Skipped where there is none.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_check import violations
from required_tests import BROWSER, needs_browser

from m3.evaluation.report import command as report
from m3.evaluation.results.run_folder import write_json
from tests.evaluation.conftest import SUITE, SWEPT, make_image, make_run

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed (extra: dev)"
)
pytestmark = [pytest.mark.slow, needs_browser]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple]:
    """(page, what it complained about, what it asked the network for, folder)."""
    run = make_run(tmp_path_factory.mktemp("page") / "run", documents=12, tasks=(*SUITE, "gqa"))
    assert report.main([str(run)]) == 0
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        said, asked = [], []
        page.on(
            "console",
            lambda message: (
                said.append(message.text) if message.type in ("error", "warning") else None
            ),
        )
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"file://{run / 'report.html'}")
        page.wait_for_selector("#mean svg")
        yield page, said, asked, run
        browser.close()


def test_opens_from_the_disk_without_a_word(opened: tuple):
    page, said, asked, run = opened
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert page.locator("#each svg").count() == len(SUITE) + 1
    assert page.locator("#mean .curve:not(.published) .mark").count() == 2 * len(SWEPT)
    # the base was trained at 36 tokens alone
    assert page.locator("#mean .mark.hollow").count() == 3
    page.screenshot(path=run / "screenshot.png", full_page=True)
    assert (run / "screenshot.png").stat().st_size > 50_000


def test_filters_change_what_is_drawn(opened: tuple):
    page, said, _, _ = opened
    page.locator('#models input[value="m3-tiny-base"]').uncheck()
    assert page.locator("#mean .curve:not(.published) .mark").count() == len(SWEPT)
    for task in SUITE:
        page.locator(f'#tasks input[value="{task}"]').uncheck()
    assert page.locator("#mean svg .title").text_content() == "gqa"
    assert page.locator("#each svg").count() == 0
    published = page.locator('#mean .curve.published[data-series="LLaVA-1.5-7B-M3"] .mark')
    assert published.count() == 5  # Table 1 of M3 has five scales
    assert "60.3; 36 tokens per image; Matryoshka Multimodal Models, Table 1" in published.nth(
        2
    ).get_attribute("aria-label")
    page.locator("#axis").select_option("first_token_ms")
    assert "measured" in page.locator("#mean svg .label").text_content()
    assert page.locator("#mean .curve.published").count() == 0
    page.locator("#axis").select_option("visual_tokens")
    for task in SUITE:
        page.locator(f'#tasks input[value="{task}"]').check()
    page.locator('#models input[value="m3-tiny-base"]').check()
    assert said == []


def test_marks_speak_to_mouse_and_keyboard(opened: tuple):
    page, _, _, _ = opened
    mark = page.locator("#mean .curve.c0 .mark").first
    mark.hover()
    assert page.locator("#tip").is_visible()
    assert "GFLOP to the first token" in page.locator("#tip").text_content()
    page.keyboard.press("Escape")
    assert not page.locator("#tip").is_visible()
    mark.focus()
    assert page.locator("#tip").is_visible()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.classList.contains('mark')")


def test_samples_are_browsed_with_buttons_and_arrows(opened: tuple):
    page, _, _, _ = opened
    question = page.locator("#sample .question")
    assert question.text_content() == "What <is> this suite_scene?"
    page.locator("#next").click()
    assert question.text_content() == "What <is> this suite_position?"
    page.keyboard.press("ArrowRight")
    assert page.locator("#sample-place").text_content() == f"3 of {len(SUITE) + 1}"
    page.locator("#sample .scales").get_by_role("button", name="9", exact=True).click()
    assert page.locator("#sample line.over").count() == 4  # three by three cells
    assert page.locator("#sample tbody tr").count() == len(SWEPT)


def tiled(run: Path) -> Path:
    """The run as of models that cut pictures into tiles: a wide picture and a tall one."""
    tiling = {"kind": "anyres", "tile_size": 24, "grid_pinpoints": [[24, 48], [48, 24], [48, 48]]}
    models = json.loads((run / "models.json").read_text())
    write_json(run / "models.json", [model | {"tiling": tiling} for model in models])
    examples = json.loads((run / "examples" / "examples.json").read_text())
    for example, size in zip(examples, ([8, 44], [44, 20]), strict=True):
        height, width = size
        make_image(1).resize((width * 8, height * 8)).save(run / "examples" / example["image"])
        example["size"] = size
    write_json(run / "examples" / "examples.json", examples)
    return run


def test_the_grid_of_cut_pictures_goes_over_their_tiles(opened: tuple, tmp_path: Path):
    page, said, _, kept = opened
    run = tiled(make_run(tmp_path / "run", documents=4, tasks=("a_wide", "a_tall")))
    assert report.main([str(run)]) == 0
    browse = page.context.browser.new_page(viewport={"width": 1280, "height": 900})
    browse.on("console", lambda message: said.append(message.text))
    browse.on("pageerror", lambda error: said.append(str(error)))
    browse.goto(f"file://{run / 'report.html'}")
    assert "in tiles (thick lines)" in browse.locator("#grid-note").text_content()
    pieces, whole = browse.locator("#sample figure").all()
    assert pieces.locator("figcaption").text_content() == "in 1 × 2 tiles: 2 × 12 cells"
    assert whole.locator("figcaption").text_content() == "as a whole: 6 × 6 cells"
    # rows 3 and 4 of 6 show the picture, 2 above and 2 below its padding; 12 columns in two tiles
    assert (pieces.locator("line.over").count(), pieces.locator("line.over.tile").count()) == (
        11 + 3,
        1,
    )
    assert pieces.locator("rect.outside").count() == 2
    assert whole.locator("line.over").count() == 5 + 5
    assert (
        "m3-tiny: 62 visual tokens for this image"
        in browse.locator("#sample .picture").text_content()
    )  # 36 + 2 (12 + 1)
    boxes = [figure.locator("svg").bounding_box() for figure in (pieces, whole)]
    # with its border
    assert [box["width"] / box["height"] for box in boxes] == pytest.approx([2, 44 / 8], rel=0.06)
    for width in (400, 1280):
        browse.set_viewport_size({"width": width, "height": 900})
        assert browse.evaluate("document.documentElement.scrollWidth") == width
        browse.locator("#samples").screenshot(path=kept / f"tiled-{width}.png")
    browse.locator("#next").click()
    assert "in 2 × 1 tiles" in browse.locator("#sample figcaption").first.text_content()
    browse.close()
    assert said == []


def test_maps_of_experts_follow_the_scale_and_the_model(opened: tuple):
    page, said, _, _ = opened
    # visual and text, two layers of four experts
    assert page.locator("#experts rect.load").count() == 2 * 2 * 4
    assert (
        page.locator("#experts-maps .title").first.text_content()
        == "visual tokens, 0 to 2 fair shares"
    )
    page.locator("#experts-scales button").first.click()
    assert page.locator('#experts-scales [aria-pressed="true"]').text_content() == "1"
    page.locator("#experts rect.load").first.hover()
    assert "layer 0, expert 0" in page.locator("#tip").text_content()
    page.locator('#models input[value="m3-tiny"]').uncheck()
    assert page.locator("#experts-model").text_content() == "No model with experts is chosen"
    page.locator('#models input[value="m3-tiny"]').check()
    assert said == []


def test_contents_lead_to_tables_and_unfold_them(opened: tuple):
    page, said, _, _ = opened
    folded = page.locator("details")
    assert folded.count() >= 3
    assert page.locator("details[open]").count() == 0
    unfolded = [table.get_attribute("id") for table in page.locator(".scroll > table[id]").all()]
    assert unfolded[:3] == ["table-scores", "table-retention", "table-differences"]
    page.locator("#contents").get_by_role("link", name="The oracle").focus()
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#section-oracle")).to_have_attribute("open", "")
    playwright.expect(page.locator("#table-oracle")).to_be_in_viewport()
    for place in page.locator("#contents a").all():
        assert page.locator(place.get_attribute("href")).count() == 1
    page.evaluate("location.hash = ''")
    assert said == []


def test_a_table_wider_than_the_page_says_so(opened: tuple):
    page, said, _, _ = opened
    place = page.locator(".scroll:has(> #table-scores)")
    hint = page.locator(".sideways:has(+ .scroll > #table-scores)")
    page.set_viewport_size({"width": 400, "height": 900})
    playwright.expect(hint).to_be_visible()
    playwright.expect(place).to_have_attribute("tabindex", "0")
    page.set_viewport_size({"width": 1280, "height": 900})
    playwright.expect(hint).to_be_hidden()
    assert place.get_attribute("tabindex") is None
    assert said == []


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_in_the_report(opened: tuple, width: int, theme: str):
    page, said, _, _ = opened
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=theme)
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    playwright.expect(page.locator("#table-cost")).to_be_visible()
    assert violations(page) == []
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = false; })")
    assert violations(page) == []
    assert said == []


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_runs_over_the_side(opened: tuple, width: int, theme: str):
    page, said, _, run = opened
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=theme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.screenshot(path=run / f"screenshot-{width}-{theme}.png")
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    page.locator("#theme").click()
    assert said == []
