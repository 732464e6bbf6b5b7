"""Every row of FORMATS reads files of exactly that format, and trains on them."""

import pickle
from pathlib import Path
from typing import get_args

import datasets
import numpy as np
import pytest
from format_files import COUNT, WRITERS, picture, write_lines
from small_checkpoint import save_small

from m3.config import load
from m3.data.formats import FORMATS, FormatName
from m3.data.formats.settings import OPTIONS
from m3.data.recipe import Source, open_source
from m3.data.sample import Sample
from m3.processing import load_image
from m3.training.loop.run_folder import RunFolder
from m3.training.loop.train import train_model
from m3.training.recipe.recipe import Recipe


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def test_the_tables_agree() -> None:
    assert set(WRITERS) == set(FORMATS) == set(get_args(FormatName))
    assert {option for row in FORMATS.values() for option in row.options} == set(OPTIONS)


@pytest.mark.parametrize("name", FORMATS)
def test_it_is_read_as_it_was_written(name: str, folder: Path) -> None:
    source, expected = WRITERS[name](folder)
    samples = open_source(source)
    assert len(samples) == COUNT
    assert [samples[n] for n in range(COUNT)] == expected
    assert samples[2] == expected[2], "in any order"
    for wrong in (-1, COUNT):
        with pytest.raises(IndexError, match=rf"record {wrong} of .*, which has {COUNT}"):
            samples[wrong]
    # a worker that is spawned rather than forked gets it so
    again = pickle.loads(pickle.dumps(samples))
    assert [again[n] for n in range(COUNT)] == expected


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small(tmp_path_factory.mktemp("tiny") / "model")


RECIPE = """
run: {folder}/run
model: {model}
matryoshka_vis_token_scale: [1, 9]
parts: {{vision_tower: frozen, connector: 1e-2, decoder: 1e-2}}
data:
  pack_length: 128
  sources: [{source}]
schedule: {{batch_size: 2, steps: 10, log_every: 5, save_every: 1000}}
hardware: {{threads: 1}}
"""


@pytest.mark.parametrize("name", FORMATS)
def test_it_trains(name: str, folder: Path, tiny: Path) -> None:
    source, _ = WRITERS[name](folder)
    options = {option: getattr(source, option) for option in ("path", "format", *OPTIONS)}
    row = ", ".join(f"{key}: {value}" for key, value in options.items() if value is not None)
    path = folder.parent / "recipe.yaml"
    path.write_text(RECIPE.format(folder=folder.parent, model=tiny, source=f"{{{row}}}"))
    run: RunFolder = train_model(load(path, Recipe))
    rows = run.read_metrics()
    assert [row["step"] for row in rows] == [5, 10]
    assert rows[1]["loss"] < rows[0]["loss"], "it learns four samples"
    assert run.is_finished
    assert ("loss_scale_9" in rows[0]) == (not name.startswith("text"))


def test_an_option_that_a_format_does_not_read_is_refused(folder: Path) -> None:
    (folder / "a.txt").write_text("a")
    with pytest.raises(
        ValueError,
        match=r"format text_files does not read image_folder \(read by "
        r"llava_json, .*hf_d",
    ):
        open_source(Source(path=str(folder), format="text_files", image_folder="x"))
    with pytest.raises(
        ValueError,
        match=r"format llava_json does not read take \(read by "
        r"hf_dataset\)",
    ):
        open_source(Source(path="a.json", take=3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1.0}, "weight of a: expected a number from 0, got -1.0"),
        ({"take": 0}, "source a: take must be at least 1, got 0"),
        ({"chunk_bytes": 0}, "source a: chunk_bytes must be at least 1, got 0"),
    ],
)
def test_numbers_of_a_source_are_checked(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Source(path="a", **options)


def test_pictures_differ() -> None:
    assert len({picture(n) for n in range(COUNT)}) == COUNT


def test_a_video_of_aria_becomes_its_frames(folder: Path) -> None:
    av = pytest.importorskip("av", reason="needs the extra `video`")
    with av.open(folder / "a.mp4", "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width = stream.height = 32
        for shade in range(0, 240, 30):
            frame = av.VideoFrame.from_ndarray(
                np.full((32, 32, 3), shade, dtype=np.uint8), format="rgb24"
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    parts = [{"type": "video"}, {"type": "text", "text": "What?"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "grey"}]
    write_lines(
        folder / "train.jsonl",
        [{"messages": messages, "video": {"path": "a.mp4", "num_frames": 4}}],
    )
    sample = open_source(Source(path=str(folder), format="aria_jsonl"))[0]
    assert isinstance(sample, Sample)
    assert sample.turns[0].text == "<image>\n<image>\n<image>\n<image>\nWhat?"
    shades = [load_image(image).getpixel((16, 16))[0] for image in sample.images]
    assert shades == sorted(shades)
    assert len(set(shades)) == 4
