"""Layouts of public data sets train as they are: system prompts, weights of turns, videos, parts
with images, columns.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from format_files import COLOURS, COUNT, picture, pictures, write_lines, write_tar
from small_checkpoint import save_small
from videos import write_video

from m3.config import load
from m3.data.formats import FormatName
from m3.data.recipe import Source, open_source
from m3.data.sample import AnySample, Document, Sample, Turn
from m3.training.loop.run_folder import RunFolder
from m3.training.loop.train import train_model
from m3.training.recipe.recipe import Recipe

ASK = "What colour is the background?"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small(tmp_path_factory.mktemp("tiny") / "model")


def said(question: str, n: int, **more: Any) -> list[dict[str, Any]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": COLOURS[n], **more}]


def chat(content: Any, n: int) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}, {"role": "assistant", "content": COLOURS[n]}]


def jsonl(folder: Path, record: Callable[[int], dict[str, Any]]) -> Path:
    pictures(folder)
    return write_lines(folder / "train.jsonl", [record(n) for n in range(COUNT)])


def table(folder: Path, row: Callable[[int], dict[str, Any]], **features: Any) -> Path:
    pictures(folder)
    rows = [row(n) for n in range(COUNT)]
    data = datasets.Dataset.from_list(rows)
    for column, feature in features.items():
        data = data.cast_column(column, feature)
    data.to_parquet(folder / "train.parquet")
    for file in folder.glob("*.png"):
        # a folder of pictures beside a table is another kind of data set
        file.rename(folder.parent / file.name)
    return folder


def texts(sample: AnySample) -> tuple[str, ...]:
    """Those of the first turn."""
    assert isinstance(sample, Sample)
    return sample.turns[0].texts


def image(n: int) -> dict[str, Any]:
    return {"bytes": picture(n), "path": None}


def cauldron(folder: Path) -> Path:
    return table(
        folder,
        lambda n: {
            "images": [image(n)],
            "texts": [{"user": ASK, "assistant": COLOURS[n], "source": "x"}],
        },
        images=datasets.List(datasets.Image()),
    )


def finevision(folder: Path) -> Path:
    more = {
        "source": "x",
        "relevance_ratings": [3],
        "relevance_min": 3,
        "image_correspondence_ratings": [4],
    }
    return table(
        folder,
        lambda n: {"images": [image(n)], "texts": [{"user": ASK, "assistant": COLOURS[n]}], **more},
        images=datasets.List(datasets.Image()),
    )


def captions(folder: Path) -> Path:
    return table(
        folder,
        lambda n: {"image": image(n), "text": f"the {COLOURS[n]} one"},
        image=datasets.Image(),
    )


def questions(folder: Path) -> Path:
    return table(
        folder,
        lambda n: {"image": image(n), "question": ASK, "answer": COLOURS[n], "id": n},
        image=datasets.Image(),
    )


def sharegpt(folder: Path) -> Path:
    system = {"from": "system", "value": "Answer in one word."}
    return jsonl(
        folder,
        lambda n: {"conversations": [system, *said(f"<image>{ASK}", n)], "images": [f"{n}.png"]},
    )


def llama_factory(folder: Path) -> Path:
    return jsonl(
        folder,
        lambda n: {
            "messages": chat(f"<image>{ASK}", n),
            "images": [f"{n}.png"],
            "system": "Answer in one word.",
        },
    )


def weighted(folder: Path) -> Path:
    return jsonl(
        folder,
        lambda n: {
            "image": f"{n}.png",
            "conversations": [*said("<image>\nIs it new?", 0, weight=0), *said(ASK, n, weight=1)],
        },
    )


def llava_video(mark: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        pytest.importorskip("av", reason="needs the extra `video`")
        for n in range(COUNT):
            write_video(folder / f"{n}.mp4", frames=4 + n)
        return jsonl(
            folder,
            lambda n: {
                "id": n,
                "video": f"{n}.mp4",
                "conversations": said(f"{mark}\n{ASK}", n),
                "data_source": "x",
            },
        )

    return write


def video_tar(folder: Path) -> Path:
    pytest.importorskip("av", reason="needs the extra `video`")
    members: dict[str, bytes] = {}
    for n in range(COUNT):
        clip = write_video(folder / f"{n}.mp4", frames=4 + n)
        members |= {
            f"{n}.mp4": clip.read_bytes(),
            f"{n}.json": json.dumps({"conversations": said(f"<video>\n{ASK}", n)}).encode(),
        }
        clip.unlink()
    return write_tar(folder / "d.tar", members)


def parts(**part: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        def record(n: int) -> dict[str, Any]:
            own = {key: value.format(n=n, folder=folder) for key, value in part.items()}
            shown = (
                {"type": "image_url", "image_url": {"url": own["url"]}}
                if own["type"] == "image_url"
                else own
            )
            return {"messages": chat([shown, {"type": "text", "text": ASK}], n)}

        return jsonl(folder, record)

    return write


def some_without_images(folder: Path) -> Path:
    """`image: ""` and null are rows of text alone."""
    empty = ("", None, [], "1.png")
    asks = [ASK, ASK, ASK, f"<image>\n{ASK}"]
    return jsonl(folder, lambda n: {"image": empty[n], "conversations": said(asks[n], n)})


def answered(image: str | bytes | None, question: str, *before: Turn) -> Sample:
    """What record number 1 of a layout becomes."""
    turns = (*before, Turn("user", question), Turn("assistant", COLOURS[1]))
    return Sample("1", () if image is None else (image,), turns)


FRAMES = 4
FILE = "{folder}/1.png"
SYSTEM = Turn("system", "Answer in one word.")
UNLEARNED = (Turn("user", "<image>\nIs it new?"), Turn("assistant", "red", learned=False))
LAYOUTS: dict[str, tuple[FormatName, Callable[[Path], Path], AnySample]] = {
    "cauldron": ("hf_dataset", cauldron, answered(picture(1), f"<image>\n{ASK}")),
    "finevision": ("hf_dataset", finevision, answered(picture(1), f"<image>\n{ASK}")),
    "captions": ("hf_dataset", captions, Document("1", (picture(1),), ("", "the green one"))),
    "questions": ("hf_dataset", questions, answered(picture(1), f"<image>\n{ASK}")),
    "sharegpt": ("llava_json", sharegpt, answered(FILE, f"<image>{ASK}", SYSTEM)),
    "llama_factory": ("aria_jsonl", llama_factory, answered(FILE, f"<image>{ASK}", SYSTEM)),
    "weighted": ("llava_json", weighted, answered(FILE, ASK, *UNLEARNED)),
    "parts path": (
        "aria_jsonl",
        parts(type="image", image="{n}.png"),
        answered(FILE, f"<image>\n{ASK}"),
    ),
    "parts file": (
        "aria_jsonl",
        parts(type="image", image="file://{folder}/{n}.png"),
        answered(FILE, f"<image>\n{ASK}"),
    ),
    "parts url": (
        "llava_json",
        parts(type="image_url", url="{n}.png"),
        answered(FILE, f"<image>\n{ASK}"),
    ),
    "some without images": ("llava_json", some_without_images, answered(None, ASK)),
}
"""Layout -> format, writer, and its record number 1 as it must be read."""
VIDEOS: dict[str, tuple[FormatName, Callable[[Path], Path]]] = {
    "llava_video, image mark": ("llava_json", llava_video("<image>")),
    "llava_video, video mark": ("llava_json", llava_video("<video>")),
    "video_tar": ("llava_tar", video_tar),
}

RECIPE = """
run: {folder}/run
model: {model}
matryoshka_vis_token_scale: [1, 9]
parts: {{vision_tower: frozen, connector: 1e-2, decoder: 1e-2}}
data:
  pack_length: 256
  sources: [{{path: {path}, format: {format}{more}}}]
schedule: {{batch_size: 2, steps: 10, log_every: 5, save_every: 1000}}
hardware: {{threads: 1}}
"""


def train(folder: Path, tiny: Path, path: Path, name: FormatName, more: str = "") -> None:
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(folder=folder, model=tiny, path=path, format=name, more=more))
    run: RunFolder = train_model(load(recipe, Recipe))
    rows = run.read_metrics()
    assert rows[-1]["step"] == 10
    assert rows[-1]["loss"] < rows[0]["loss"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_is_read_and_trains(layout: str, folder: Path, tiny: Path) -> None:
    name, write, expected = LAYOUTS[layout]
    path = write(folder)
    sample = open_source(Source(path=str(path), format=name))[1]
    images = tuple(
        image.format(folder=folder) if isinstance(image, str) else image
        for image in expected.images
    )
    assert sample.images == images
    if isinstance(expected, Sample):
        assert isinstance(sample, Sample)
        assert sample.turns == expected.turns
    else:
        assert sample.texts == expected.texts
    train(folder.parent, tiny, path, name)


@pytest.mark.parametrize("layout", VIDEOS)
def test_a_video_is_read_and_trains(layout: str, folder: Path, tiny: Path) -> None:
    name, write = VIDEOS[layout]
    path = write(folder)
    sample = open_source(Source(path=str(path), format=name, num_frames=FRAMES))[1]
    assert isinstance(sample, Sample)
    assert len(sample.images) == FRAMES
    assert sample.turns[0].texts == ("", "\n", "\n", "\n", f"\n{ASK}")
    assert len(open_source(Source(path=str(path), format=name))[3].images) == 7, (
        "eight, or all where there are fewer"
    )
    train(folder.parent, tiny, path, name, f", num_frames: {FRAMES}")


def test_several_videos_and_a_video_in_a_part(folder: Path) -> None:
    pytest.importorskip("av", reason="needs the extra `video`")
    for name in "ab":
        write_video(folder / f"{name}.mp4", frames=4)
    two = {
        "videos": ["a.mp4", {"path": "b.mp4", "num_frames": 2}],
        "conversations": said("<video> or <video>?", 1),
    }
    part = {
        "messages": chat(
            [{"type": "video", "video": "a.mp4", "num_frames": 2}, {"type": "text", "text": "?"}], 1
        )
    }
    path = write_lines(folder / "train.jsonl", [two, part])
    source = open_source(Source(path=str(path), num_frames=3))
    assert texts(source[0]) == ("", "\n", "\n", " or ", "\n", "?")
    assert texts(source[1]) == ("", "\n", "\n?")


def test_marks_in_parts_are_text(folder: Path) -> None:
    """In messages of parts, parts are images; a question about the tag `<image>` shows none."""
    words = {"type": "text", "text": "What does <image> do, or <video>?"}
    rows = [
        {"messages": chat([words], 0)},
        {"messages": chat([{"type": "image"}, words], 0), "images": ["0.png"]},
        {"messages": chat([words], 0), "images": ["0.png"]},
        {"messages": chat([{"type": "image"}, words], 0), "images": ["0.png", "1.png"]},
    ]
    source = open_source(
        Source(path=str(write_lines(folder / "train.jsonl", rows)), format="aria_jsonl")
    )
    assert texts(source[0]) == (words["text"],)
    assert texts(source[1]) == ("", f"\n{words['text']}")
    for number, counts in (
        (2, "0 <image> marks .* but 1 images"),
        (3, "1 <image> marks .* but 2 images"),
    ):
        with pytest.raises(ValueError, match=counts):
            source[number]


def test_columns_of_lists_are_rows(folder: Path) -> None:
    """What `datasets.Sequence` once made of a list of objects."""
    turns = {"from": ["human", "gpt"], "value": ["a", "b"]}
    pq.write_table(pa.table({"conversations": [turns]}), folder / "d.parquet")
    sample = open_source(Source(path=str(folder), format="hf_dataset"))[0]
    assert isinstance(sample, Sample)
    assert sample.turns == (Turn("user", "a"), Turn("assistant", "b"))


def test_parts_as_columns_and_a_question_that_is_not_learned_anyway(folder: Path) -> None:
    parts = {"type": ["image", "text"], "image": ["0.png", None], "text": [None, "What?"]}
    rows = [
        {"messages": chat(parts, 0)},
        {"messages": [{"role": "user", "content": "a", "train": False}, *chat("", 0)[1:]]},
    ]
    source = open_source(
        Source(path=str(write_lines(folder / "train.jsonl", rows)), format="aria_jsonl")
    )
    assert texts(source[0]) == ("", "\nWhat?")
    assert source[1] == Sample("1", (), (Turn("user", "a"), Turn("assistant", COLOURS[0])))


def test_a_row_of_nan_shows_no_image(folder: Path) -> None:
    table = pa.table({"image": np.asarray([np.nan]), "conversations": [said("a", 0)]})
    pq.write_table(table, folder / "d.parquet")
    for name in ("hf_dataset", "llava_parquet"):
        assert open_source(Source(path=str(folder), format=name))[0].images == ()
