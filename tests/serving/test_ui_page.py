"""What the server does for its page, without a browser."""

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from serving_files import data_address, png
from starlette.testclient import TestClient
from videos import write_video

from m3.model import M3ForConditionalGeneration
from m3.processing import M3Processor
from m3.serving.app import create_app
from m3.serving.cluster.config import Fleet, Served
from m3.serving.cluster.local import create_local
from m3.serving.command import main
from m3.serving.engine.engine import Engine
from m3.serving.settings import Limits, Settings
from m3.serving.ui.page import FILES, HEADERS

GRID = "/ui/token_grid"
Client = Callable[..., TestClient]
Loaded = tuple[M3ForConditionalGeneration, M3Processor]


@pytest.fixture
def client(engine: Engine) -> Client:
    """A client of the app with other settings."""
    return lambda **settings: TestClient(create_app(engine, Settings(name="tiny", **settings)))


def still(content: bytes) -> dict:
    return {"visual": {"type": "image_url", "image_url": {"url": data_address(content)}}}


def pictures(answer: dict) -> list[Image.Image]:
    """The pictures of a token grid."""
    contents = [address.partition(",")[2] for address in answer["pictures"]]
    return [Image.open(io.BytesIO(base64.b64decode(content))) for content in contents]


def test_the_page_is_served_with_headers_that_close_it(client: Client):
    served = client(ui=True)
    for path, (_, media_type) in FILES.items():
        answer = served.get(path)
        assert answer.status_code == 200, path
        assert answer.headers["content-type"].startswith(media_type), path
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS, path
    assert len(FILES) == 14
    assert served.get("/ui/").url.path == "/ui"
    assert served.post("/ui").status_code == 405
    for path in ("/ui/page.py", "/ui/examples", "/ui/../page.py", "/ui/x"):
        assert served.get(path).status_code == 404, path


def test_the_page_loads_its_own_files_alone(client: Client):
    served = client(ui=True)
    names = [path for path, (_, media_type) in FILES.items() if media_type.startswith("text/")]
    assert len(names) == 9
    for name in names:
        text = served.get(name).text
        assert len(text) > 500
        assert re.findall(r"https?://|//cdn|innerHTML|insertAdjacentHTML|eval\(", text) == []


def test_there_is_no_page_where_none_is_asked_for(client: Client):
    served = client()
    assert [served.get(path).status_code for path in FILES] == [404] * len(FILES)
    assert served.post(GRID, json=still(png())).status_code == 404


def test_the_files_need_no_key_and_all_else_does(client: Client):
    served = client(ui=True, api_key="secret")
    assert [served.get(path).status_code for path in (*FILES, "/ui/")] == [200] * 15
    assert served.post(GRID, json=still(png())).status_code == 401
    for path in ("/v1/models", "/metrics", "/ui/x", "/ui/page.css/"):
        assert served.get(path).status_code == 401, path
    key = {"Authorization": "Bearer secret"}
    assert served.post(GRID, json=still(png()), headers=key).status_code == 200


def test_numbers_on_the_page_are_within_the_limits(client: Client):
    text = client(ui=True).get("/ui").text
    assert 'id="frames" type="number" min="1" max="64" value="8"' in text
    assert 'id="tokens" type="number" min="1" max="1024" value="256"' in text
    text = client(ui=True, limits=Limits(frames=3, new_tokens=20)).get("/ui").text
    assert 'max="3" value="3"' in text and 'max="20" value="20"' in text


def test_a_grid_is_that_of_the_picture_as_the_encoder_sees_it(client: Client):
    answer = client(ui=True).post(GRID, json=still(png("red", (1000, 500)))).json()
    (picture,) = pictures(answer)
    assert picture.size == (480, 480)  # padded to a square
    assert picture.getpixel((240, 240)) == pytest.approx((254, 0, 0), abs=2)
    assert picture.getpixel((240, 10)) != pytest.approx((254, 0, 0), abs=50)
    assert list(answer["grids"]) == ["1", "4", "9", "36", "144"]
    assert [len(grid["lines"]) for grid in answer["grids"].values()] == [0, 2, 4, 10, 22]
    cross = [[0.5, 0, 0.5, 1], [0, 0.5, 1, 0.5]]
    assert answer["grids"]["4"] == {"picture": 0, "lines": cross}


def test_each_budget_of_a_ladder_has_its_own_grid(elastic: Loaded):
    settings = Settings(name="tiny", ui=True)
    engine = Engine(*elastic, settings)
    answer = TestClient(create_app(engine, settings)).post(GRID, json=still(png())).json()
    engine.close()
    assert len(pictures(answer)) == 1, "one whole picture at every resolution, sent once"
    assert list(answer["grids"]) == ["1@24", "9@24", "9", "36@24", "36", "144"]
    assert [len(grid["lines"]) for grid in answer["grids"].values()] == [0, 4, 4, 10, 10, 22]


def test_the_grid_of_a_video_is_on_its_first_frame(client: Client, tmp_path: Path):
    address = data_address(write_video(tmp_path / "short.mp4").read_bytes(), "video/mp4")
    visual = {"type": "video_url", "video_url": {"url": address}, "num_frames": 8}
    answer = client(ui=True).post(GRID, json={"visual": visual}).json()
    (picture,) = pictures(answer)
    red, _, blue = picture.getpixel((50, 40))
    assert blue > 200 > 50 > red


WRONG = {
    "not among the hosts that this server fetches from": "https://example.org/a.png",
    "opens no files": "file:///etc/passwd",
    "damaged or cut short": data_address(png("red", (60, 60))[:80]),
    "more than the limit of 4,000": data_address(png("red", (100, 41))),
    "more than this server's limit of 5,000": data_address(bytes(6000)),
}


def test_pictures_of_grids_are_within_the_limits_too(client: Client):
    served = client(ui=True, limits=Limits(pixels=4000, image_bytes=5000))
    for text, url in WRONG.items():
        answer = served.post(
            GRID, json={"visual": {"type": "image_url", "image_url": {"url": url}}}
        )
        assert answer.status_code == 400
        assert text in answer.json()["error"]["message"]
    assert served.post(GRID, json={"visual": {"type": "text", "text": "a"}}).status_code == 400
    assert served.post(GRID, content=b"{}").status_code == 415


def test_the_page_belongs_to_one_process():
    with pytest.raises(ValueError, match="--ui: the page belongs to one process; leave out"):
        main(["--model-path", "nowhere", "--ui", "--replicas", "2"])


def test_a_file_that_is_no_picture_has_a_code_of_its_own(client: Client):
    answer = client(ui=True).post(GRID, json=still(b"hello"))
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "no_picture"
    damaged = client(ui=True).post(GRID, json=still(png("red", (60, 60))[:80]))
    assert damaged.json()["error"]["code"] != "no_picture"


def test_a_fleet_has_one_page_and_the_token_grids_of_each_model(
    tiny_checkpoint: Callable[[Path], Path], tmp_path: Path
):
    path = str(tiny_checkpoint(tmp_path / "tiny"))
    fleet = Fleet(models=tuple(Served(path=path, name=name, device="cpu") for name in "ab"))
    with TestClient(create_local(fleet, Settings(ui=True, api_key="secret"))) as served:
        assert [served.get(page).status_code for page in (*FILES, "/ui/")] == [200] * 15
        assert served.post(GRID, json=still(png())).status_code == 401
        key = {"Authorization": "Bearer secret"}
        for name in "ab":
            body = still(png()) | {"model": name}
            assert served.post(GRID, json=body, headers=key).status_code == 200
        answer = served.post(GRID, json=still(png()) | {"model": "c"}, headers=key)
        assert answer.status_code == 404
        assert "this server has 'a', 'b'" in answer.json()["error"]["message"]
    with TestClient(create_local(fleet, Settings())) as served:
        assert [served.get(page).status_code for page in (*FILES, GRID)] == [404] * 15
