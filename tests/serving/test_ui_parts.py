"""What the page shows and asks, without a browser."""

import math
from pathlib import Path

import pytest
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from m3.inference import Generation
from m3.processing.token_grid import grid_lines
from m3.processing.video import Sampling
from m3.serving.command import main
from m3.serving.engine.requests import Finished, Refused, Turn, Usage, Visual
from m3.serving.settings import Limits, Settings
from m3.serving.ui import html as ui_html
from m3.serving.ui.access import HEADERS, Gate
from m3.serving.ui.handlers import Choices
from m3.serving.ui.state import Reading, Shown, Talk, caption, facts, figures, ladder, request

DONE = Reading(9, "a?", "b").end(Finished("b", "length", Usage(20, (9,), 3), 0.0123456, 1.25))


# ---------------------------------------------------------------------- talk
def test_the_picture_stands_in_front_of_the_first_question():
    visual, now = Visual("image", b"x"), Reading(4, "c?")
    asked = request(visual, [DONE], now, Generation(5))
    assert asked.turns == (
        Turn("user", (visual, "a?")),
        Turn("assistant", ("b",)),
        Turn("user", ("c?",)),
    )
    assert asked.scale == 4 and asked.generation == Generation(5)
    assert request(None, [], now, Generation()).turns == (Turn("user", ("c?",)),)


def test_figures_say_what_is_known():
    assert figures(Reading(9, "a?")) == []
    assert figures(DONE) == [
        "9 visual tokens",
        "first token 12 ms",
        "total 1.2 s",
        "cut at the limit of tokens",
    ]
    assert caption(DONE).startswith("Scale 9 · 9 visual tokens · ")
    assert caption(Reading(16, "a?", is_trained=False)) == "Scale 16 (not trained)"
    assert figures(Reading(9, "a?").fail("no room")) == ["refused: no room"]


def test_facts_name_the_file_by_its_digest(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"x")
    found = facts(Talk(Shown("image", str(tmp_path / "a.png")), (DONE,), 0.5), "tiny", "now")
    assert (
        found["shown"]["sha256"]
        == "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    )
    assert str(tmp_path) not in str(found)
    (answer,) = found["answers"]
    assert (answer["matryoshka_vis_token_scale"], answer["text"], answer["visual_tokens"]) == (
        9,
        "b",
        9,
    )
    video = facts(
        Talk(Shown("video", str(tmp_path / "gone.mp4"), Sampling(num_frames=3))), "tiny", "now"
    )["shown"]
    assert video == {"kind": "video", "file": "gone.mp4", "sha256": None, "num_frames": 3}


def test_files_are_read_within_the_limits(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"12345")
    shown = Shown("image", str(tmp_path / "a.png"))
    assert shown.read(Limits()).content == b"12345"
    with pytest.raises(Refused, match="the image has 5 bytes, more than this server's limit of 4"):
        shown.read(Limits(image_bytes=4))
    with pytest.raises(Refused, match="the video is no longer on the server: choose it again"):
        Shown("video", str(tmp_path / "b.mp4")).read(Limits())


def test_the_slider_offers_scales_that_there_are():
    assert ladder([1, 4, 9], (1, 4, 9, 16)) == (1, 4, 9, 16)
    assert ladder([1, 64], tuple(range(1, 65))) == (1, 64)
    slider = ui_html.scale_slider((1, 4, 9), [1, 9], 9)
    assert 'data-scales="1 4 9"' in slider and 'aria-valuetext="9 visual tokens"' in slider
    assert slider.count("not trained") == 1


GOOD = ("image", {"path": "/a"}, None, 8, 16, 0.5)
WRONG = {
    "temperature: expected a number from 0 to 2, got nan": (*GOOD[:5], math.nan),
    "tokens: expected a number from 1 to": (*GOOD[:4], math.inf, 0),
    "tokens: expected a number from 1 to 2.14748e.09, got 'x'": (*GOOD[:4], "x", 0),
    "frames: expected a number from 1": ("video", None, {"path": "/a"}, 0, 16, 0),
    "expected an uploaded file": ("image", {"path": 3}, None, 8, 16, 0),
}


def test_what_the_browser_sent_is_checked():
    assert Choices.read(*GOOD) == Choices(Shown("image", "/a"), Generation(16, 0.5))
    assert Choices.read("video", {"path": "/a"}, None, 8, 16, 0).shown is None
    for text, given in WRONG.items():
        with pytest.raises(ValueError, match=text):
            Choices.read(*given)


def test_the_page_belongs_to_one_process():
    with pytest.raises(ValueError, match="--ui: the page belongs to one model in one process"):
        main(["--model-path", "nowhere", "--ui", "--replicas", "2"])


# ---------------------------------------------------------------------- HTML
def test_all_that_was_written_is_escaped():
    evil = Reading(4, "<img src=x>", "<script>1</script>\n&").end(
        Finished("<script>1</script>\n&", "stop", Usage(9, (4,), 2), 0.1, 0.2)
    )
    for html in (ui_html.conversation([evil]), ui_html.comparison([evil], {}, 1.0, 0.1)):
        assert "<img" not in html and "<script" not in html
        assert "&lt;script&gt;1&lt;/script&gt;<br>&amp;" in html


def test_a_card_per_scale_with_its_grid():
    readings = [Reading(scale, "a?") for scale in (1, 4, 144)]
    lines = {4: grid_lines((2, 2)), 144: grid_lines((12, 12))}
    html = ui_html.comparison(readings, lines, 1.5, None, is_busy=True)
    assert html.count("<li") == 3 and 'aria-busy="true"' in html and html.count("m3-cursor") == 1
    assert html.count("M0.5 0L0.5 1") == 2 * 2 and html.count("m3-fine") == 1
    assert "with the grid of 144 cells" in html and html.count("without a grid") == 1
    small = ui_html.picture_address(Image.new("RGB", (1000, 500)))
    assert small.startswith("data:image/jpeg;base64,")


# ---------------------------------------------------------------------- gate
OPEN = [
    "/",
    "/config",
    "/theme.css",
    "/assets/a-b.js",
    "/static/js/x.js",
    "/gradio_api/heartbeat/abc",
    "/gradio_api/file=/tmp/a",
]
SHUT = [
    "/gradio_api/file=https://example.org/a.png",
    "/gradio_api/file=http:/a",
    "/gradio_api/proxy=https://example.org",
    "/monitoring",
    "/gradio_api/vibe-code",
    "/gradio_api/info",
    "/gradio_api/deep_link",
    "/docs",
    "/openapi.json",
    "/gradio_api/runs",
    "/svelte/x",
    "/gradio_api/profiling/traces",
    "/gradio_api/stream/a/b/1/playlist.m3u8",
    "/custom_component/a/b/c/d",
]


@pytest.fixture
def gate(tmp_path: Path) -> TestClient:
    async def said(request: HttpRequest) -> PlainTextResponse:
        return PlainTextResponse(await request.body() or "page")

    app = Starlette(routes=[Route("/{path:path}", said, methods=["GET", "POST"])])
    app.add_middleware(Gate, settings=Settings(ui_bytes=10), folder=tmp_path)
    return TestClient(app)


def test_only_what_the_page_needs_is_served(gate: TestClient):
    for path in OPEN:
        answer = gate.get(f"/ui{path}")
        assert answer.text == "page", path
        assert (
            HEADERS.items() <= {name.title(): text for name, text in answer.headers.items()}.items()
        ), path
    for path in SHUT:
        answer = gate.get(f"/ui{path}")
        assert (answer.status_code, answer.json()["error"]["message"]) == (
            404,
            "there is no such page",
        ), path
    assert gate.post("/ui/gradio_api/component_server").status_code == 404
    assert gate.get("/uikit/docs").text == "page"


@pytest.mark.parametrize("path", ["queue/join", "run/predict"])
def test_events_name_no_files_but_uploaded_ones(gate: TestClient, tmp_path: Path, path: str):
    join = f"/ui/gradio_api/{path}"
    good = {
        "data": [{"path": str(tmp_path / "x" / "a.png")}, "http://text.is/text", {"path": None}]
    }
    assert gate.post(join, json=good).json() == good
    for wrong in (
        "https://example.org/a.png",
        "/etc/passwd",
        f"{tmp_path}/../b",
        "a.png",
        "file:///etc/passwd",
        "\0",
        3,
    ):
        answer = gate.post(join, json={"data": [[{"deep": {"path": wrong}}]]})
        assert (
            answer.status_code == 400
            and "opens no files and no addresses" in answer.json()["error"]["message"]
        ), wrong
    for body in (b"{", b"[" * 100_000, b"\xff"):
        assert gate.post(join, content=body).json()["error"]["message"] == "the event is not JSON"


def test_uploads_are_bounded_together(gate: TestClient, tmp_path: Path):
    assert gate.post("/ui/gradio_api/upload", content=b"a").text == "a"
    (tmp_path / "held").write_bytes(bytes(11))
    answer = gate.post("/ui/gradio_api/upload", content=b"a")
    assert answer.status_code == 429 and answer.headers["retry-after"] == "2"
    assert "holds as many uploaded files" in answer.json()["error"]["message"]
