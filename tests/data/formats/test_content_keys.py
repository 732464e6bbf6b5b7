"""No content of a record is dropped in silence: every reader reads a key that holds some, or
refuses it in words.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from format_files import picture, talk, write_lines, write_tar

from m3.data.formats import FORMATS, FormatName
from m3.data.formats.content_keys import holds_content
from m3.data.recipe import Source, open_source
from m3.data.sample import AnySample, Sample
from m3.data.synthetic.suite import TRAIN_FEATURES, train_row

TALK = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "a"}]
CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "text", "text": "What?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
]

Write = Callable[[Path, dict[str, Any]], Path]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def lines(folder: Path, record: dict[str, Any]) -> Path:
    return write_lines(folder / "train.jsonl", [record])


def parquet(folder: Path, record: dict[str, Any]) -> Path:
    pq.write_table(
        pa.table({name: [value] for name, value in record.items()}), folder / "d.parquet"
    )
    return folder


def tar(*images: str) -> Write:
    def write(folder: Path, record: dict[str, Any]) -> Path:
        return write_tar(
            folder / "d.tar",
            {
                **{f"k.{image}": picture(0) for image in images},
                "k.json": json.dumps(record).encode(),
            },
        )

    return write


READERS: dict[str, tuple[FormatName, Write, dict[str, Any]]] = {
    "llava_json": ("llava_json", lines, {"conversations": TALK}),
    "llava_json messages": ("llava_json", lines, {"messages": CHAT}),
    "llava_parquet": ("llava_parquet", parquet, {"conversations": TALK}),
    "llava_tar": ("llava_tar", tar(), {"conversations": TALK}),
    "aria_jsonl": ("aria_jsonl", lines, {"messages": CHAT}),
    "ocr_jsonl": ("ocr_jsonl", lines, {"data": ["What?", "a"], "image": "0.png"}),
    "caption_tar": ("caption_tar", tar("png"), {"caption": "a"}),
    "interleaved_jsonl": ("interleaved_jsonl", lines, {"text_list": ["a"], "image_info": []}),
    "interleaved_tar": (
        "interleaved_tar",
        tar("0.png"),
        {"texts": ["a", None], "images": [None, "0.png"]},
    ),
    "text_jsonl": ("text_jsonl", lines, {"text": "a"}),
    "hf_dataset conversations": ("hf_dataset", parquet, {"conversations": TALK}),
    "hf_dataset texts": ("hf_dataset", parquet, {"texts": [{"user": "What?", "assistant": "a"}]}),
    "hf_dataset question": ("hf_dataset", parquet, {"question": "What?", "answer": "a"}),
    "hf_dataset text": ("hf_dataset", parquet, {"text": "a"}),
}
"""Every format that has records, with a record that it reads."""

CONTENT: dict[str, Any] = {
    "image": "1.png",
    "images": ["1.png"],
    "Image": "1.png",
    "IMAGES": ["1.png"],
    "image_path": "1.png",
    "imagePaths": ["1.png"],
    "img": "1.png",
    "file_name": "1.png",
    "picture1": {"bytes": b"1", "path": None},
    "anything": {"bytes": b"1", "path": "a"},
    "video": "a.mp4",
    "videos": ["a.mp4"],
    "video_path": "a.mp4",
    "audio": "a.wav",
    "audios": ["a.wav"],
    "sound": "a.wav",
    "system": "Answer in French.",
    "System": "Answer in French.",
    "system_prompt": "Answer in French.",
    "tools": '[{"name": "search"}]',
    "functions": [{"name": "search"}],
    "weight": 0.0,
    "loss": False,
    "train": False,
    "learn": False,
    "mask": [0, 1],
    "loss_mask": [0, 1],
    "conversations": [{"from": "human", "value": "Other?"}, {"from": "gpt", "value": "other"}],
    "messages": [{"role": "user", "content": "Other?"}, {"role": "assistant", "content": "other"}],
    "texts": [{"user": "Other?", "assistant": "other"}],
    "text": "other",
    "caption": "other",
    "question": "Other?",
    "answers": ["other"],
    "history": [["Other?", "other"]],
    "rejected": "other",
}
HARMLESS: dict[str, Any] = {
    "source": "coco", "url": "https://example.org/a.jpg", "model": "x", "image_id": 3, "image_width": 640,
    "text_length": 9, "caption_similarity": 0.3, "num_frames": 8, "license": "by", "meta": {"a": 1},
    "data_source": "x", "question_type": "y", "relevance_ratings": [3],
}  # fmt: skip
EMPTY: tuple[Any, ...] = (None, "", [], {}, float("nan"), [None], {"bytes": None, "path": None})


def read(reader: str, folder: Path, **more: Any) -> AnySample:
    name, write, record = READERS[reader]
    return open_source(Source(path=str(write(folder, record | more)), format=name))[0]


def everything(sample: AnySample) -> str:
    """All that a model would see of it."""
    texts = (
        [text for turn in sample.turns for text in turn.texts]
        if isinstance(sample, Sample)
        else sample.texts
    )
    learned = [turn.learned for turn in sample.turns] if isinstance(sample, Sample) else []
    return repr((texts, sample.images, learned))


def refusal(reader: str, folder: Path, **more: Any) -> str | None:
    """Why the record is refused; None if it is read."""
    try:
        read(reader, folder, **more)
    except ValueError as error:
        return str(error)
    return None


def test_every_format_with_records_is_here() -> None:
    assert {name for name, _, _ in READERS.values()} == set(FORMATS) - {"text_files"}


@pytest.mark.parametrize("key", CONTENT)
@pytest.mark.parametrize("reader", READERS)
def test_content_is_read_or_refused(reader: str, key: str, tmp_path: Path) -> None:
    own = READERS[reader][2]
    if key in own:
        return
    if reader.split()[0] in ("llava_json", "aria_jsonl", "llava_tar", "interleaved_jsonl", "interleaved_tar", "ocr_jsonl",
                             "caption_tar", "text_jsonl") and isinstance(CONTENT[key], dict):  # fmt: skip
        more = {key: "data:image/png;base64,AAAA"}  # JSON holds no bytes
    else:
        more = {key: CONTENT[key]}
    (tmp_path / "plain").mkdir()
    plain = everything(read(reader, tmp_path / "plain")).replace(str(tmp_path / "plain"), "")
    refused = refusal(reader, tmp_path, **more)
    if refused is not None:
        names = (key, "a.mp4", "1.png", "<image> marks")
        assert any(name in refused for name in names), (
            "the sentence names the key, or the file that is not there"
        )
        assert str(tmp_path) in refused, "and the file of the record"
        return
    sample = read(reader, tmp_path, **more)
    if key in ("image_path", "imagePaths", "file_name") and sample.images:
        assert sample.unused == (key,), "where a picture came from is named beside the picture"
        return
    assert everything(sample).replace(str(tmp_path), "") != plain, "it was dropped in silence"
    assert key not in sample.unused


@pytest.mark.parametrize("reader", READERS)
def test_what_is_harmless_is_counted_and_what_is_empty_is_not_there(
    reader: str, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    harmless = {key: value for key, value in HARMLESS.items() if key not in READERS[reader][2]}
    assert set(read(reader, tmp_path / "a", **harmless).unused) == set(harmless)
    for number, empty in enumerate(EMPTY):
        if (READERS[reader][1] is parquet and empty in ({}, [], [None])) or (
            number == 4 and READERS[reader][1] is lines
        ):
            continue  # parquet has no column of an empty type; NaN is JSON of Python alone
        folder = tmp_path / str(number)
        folder.mkdir()
        more = {key: empty for key in CONTENT if key not in READERS[reader][2]}
        assert read(reader, folder, **more).unused == ()


@pytest.mark.parametrize(
    ("key", "value", "content"),
    [
        ("imagePath", "a", True),
        ("imagepath", "a", True),
        ("systemprompt", "a", True),
        ("textlength", 3, False),
        ("imagenet", 3, False),
        ("IMAGES", "a", True),
        ("image_url", "https://a", True),
        ("videos2", "a", True),
        ("loss", 0, True),
        ("passages", ["a"], True),
        ("ocr", "a", True),
        ("ocr_tokens", 3, False),
        ("target", "a", True),
        ("raw_text", "a", True),
        ("tool_calls", [1], True),
        ("imageId", 1, False),
        ("image_sha256", "a", False),
        ("mp3_duration", 1, False),
        ("labels", [1], False),
        ("extra", {"image": "a"}, True),
        ("regions", [{"box": [1]}, {"caption": "a"}], True),
        ("regions", [{"box": [1], "caption": ""}], False),
        ("meta", {"image": "a"}, False),
        ("path", "src/a.py", False),
        ("path", "a.jpg", True),
        ("url", "https://a/b.jpg", False),
        ("status", "ok", False),
        ("class", 3, False),
    ],
)
def test_which_keys_hold_content(key: str, value: Any, content: bool) -> None:
    assert holds_content(key, value, has_media=False) == content


def test_bytes_are_content_where_they_are_a_file() -> None:
    assert holds_content("anything", picture(0), has_media=True)
    assert holds_content("anything", [{"bytes": b"1", "path": None}], has_media=True)
    assert not holds_content("patch_slot", bytes(144), has_media=True), (
        "the labels of the embedded suite"
    )


def test_the_embedded_suite_is_read(tmp_path: Path) -> None:
    datasets.Dataset.from_list([train_row("digits", 0, 0)], features=TRAIN_FEATURES).to_parquet(
        tmp_path / "a.parquet"
    )
    sample = open_source(Source(path=str(tmp_path), format="llava_parquet"))[0]
    assert set(sample.unused) == {"family", "patch_class", "patch_slot"}


def test_where_a_picture_came_from_is_no_content_beside_the_picture() -> None:
    for key in ("image_url", "image_path", "file_name"):
        assert holds_content(key, "a.jpg", has_media=False)
        assert not holds_content(key, "a.jpg", has_media=True)


TURNS: list[tuple[str, dict[str, Any], str]] = [
    ("llava_json", {"conversations": [TALK[0] | {"image": "a.jpg"}, TALK[1]]}, r"turn 0: key "
                                                                               r"'image' is not "
                                                                               r"read here"),
    ("llava_json", {"conversations": [TALK[0], TALK[1] | {"tool_calls": [1]}]}, r"turn 1: key "
                                                                                r"'tool_calls' is "
                                                                                r"not read"),
    ("llava_json", {"conversations": [TALK[0], TALK[1] | {"weight": 0.5}]}, r"turn 1: the weight "
                                                                            r"of a turn must be 0"),
    ("llava_json", {"conversations": [TALK[0] | {"weight": 1}, TALK[1]]}, r"turn 0: asks to learn "
                                                                          r"what the user says"),
    ("llava_json", {"conversations": [TALK[0], TALK[1] | {"weight": 0}]}, r"all of its answers "
                                                                          r"have weight 0"),
    ("llava_json", {"conversations": [TALK[0], TALK[1] | {"weight": 0, "loss": 1}]}, r"'weight' and 'loss', of which"),
    ("llava_json", {"system": "a", "conversations": [{"from": "system", "value": "b"}, *TALK]}, r"keep one of them"),
    ("llava_json", {"conversations": [*TALK, {"from": "system", "value": "b"}]}, r"turns must go "
                                                                                 r"user, assistant"),
    ("llava_json", {"system": 3, "conversations": TALK}, r"'system' must be text, got 3"),
    ("llava_json", {"conversations": TALK, "messages": CHAT}, r"has 'conversations' and "
                                                              r"'messages', of which only one"),
    ("llava_json", {"conversations": TALK, "image": "a", "images": ["b"]}, r"has 'image' and "
                                                                           r"'images', of which "
                                                                           r"only"),
    ("llava_json", {"conversations": talk(0), "image": "https://a/b.jpg"}, r"'https://a/b\.jpg' is "
                                                                           r"an address"),
    ("llava_json", {"conversations": talk(0), "image": "s3://a/b.jpg"}, r"is an address; training "
                                                                        r"reads files only"),
    ("llava_json", {"conversations": talk(0), "image": "file://host/b.jpg"}, r"write file:///path"),
    ("llava_json", {"conversations": TALK, "video": {"path": "a.mp4", "fps": 2}}, r"video: key "
                                                                                  r"'fps' is not "
                                                                                  r"read here"),
    ("aria_jsonl", {"messages": [CHAT[0] | {"images": ["a"]}, CHAT[1]]}, r"message 0: key 'images' "
                                                                         r"is not read here"),
    ("aria_jsonl", {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "image": "b"}]}, CHAT[1]]},
     r"message 0, part 0: key 'image' is not read here"),
    ("aria_jsonl", {"messages": [{"role": "user", "content": [{"type": "image", "file": "b.jpg"}]}, CHAT[1]],
                    "images": ["a"]}, r"message 0, part 0: key 'file' is not read here"),
    ("aria_jsonl", {"messages": [{"role": "user", "content": [{"type": "video", "video": "a.mp4", "fps": 1}]}, CHAT[1]]},
     r"part 0: key 'fps' is not read here"),
    ("aria_jsonl", {"messages": CHAT, "images": ["a.jpg"]}, r"0 <image> marks in the user's turns "
                                                            r"but 1 images"),
    ("hf_dataset texts", {"texts": [{"user": "a", "assistant": "b", "image": "c.jpg"}]}, r"texts 0: key 'image' is not"),
]  # fmt: skip


@pytest.mark.parametrize(("reader", "record", "message"), TURNS)
def test_content_inside_turns_and_parts(
    reader: str, record: dict[str, Any], message: str, tmp_path: Path
) -> None:
    name, write, _ = READERS[reader]
    source = open_source(Source(path=str(write(tmp_path, record)), format=name))
    with pytest.raises(ValueError, match=message):
        source[0]


MEMBERS: list[tuple[FormatName, dict[str, Any], dict[str, bytes], str]] = [
    ("llava_tar", {"conversations": TALK}, {"k.wav": b"a"}, r"sample 'k': its member \.wav is not "
                                                            r"read"),
    ("llava_tar", {"conversations": TALK}, {"k.txt": b"a"}, r"its member \.txt is not read"),
    ("llava_tar", {"conversations": TALK}, {"k.mp4": b"a"}, r"d\.tar, sample 'k': video of 1 bytes"),
    ("llava_tar", {"conversations": talk(0), "image": "k.png"}, {"k.png": b"a", "k.2.jpg": b"b"}, r"member \.2\.jpg is"),
    ("caption_tar", {"caption": "a"}, {"k.png": b"a", "k.mp4": b"b"}, r"its member \.mp4 is not "
                                                                      r"read"),
    ("caption_tar", {"caption": "a"}, {"k.png": b"a", "k.txt": b"b"}, r"its \.txt and its \.json "
                                                                      r"have different captions"),
    ("interleaved_tar", {"texts": ["a"], "images": [None]}, {"k.0.png": b"a"}, r"its member "
                                                                               r"\.0\.png is not "
                                                                               r"read"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "record", "beside", "message"), MEMBERS)
def test_files_beside_a_record_are_read_or_refused(
    name: FormatName, record: dict[str, Any], beside: dict[str, bytes], message: str, tmp_path: Path
) -> None:
    path = write_tar(
        tmp_path / "d.tar", {"k.json": json.dumps(record).encode(), "k.cls": b"3", **beside}
    )
    with pytest.raises(ValueError, match=message):
        open_source(Source(path=str(path), format=name))[0]
    kinds = tuple(member.removeprefix("k.") for member in beside if member != "k.png")
    sample = open_source(Source(path=str(path), format=name, ignore=kinds))[0]
    assert sorted(sample.unused) == sorted([".cls", *(f".{kind}" for kind in kinds)])


def test_a_source_may_be_told_to_leave_content_out(tmp_path: Path) -> None:
    path = lines(tmp_path, {"text": "a", "caption": "b", "tools": "c"})
    assert open_source(Source(path=str(path), format="text_jsonl", ignore=("caption", "tools")))[
        0
    ].unused == ("caption", "tools")
    turns = [TALK[0], TALK[1] | {"weight": 0.5, "mask": 1}]
    path = lines(tmp_path, {"conversations": turns})
    sample = open_source(Source(path=str(path), ignore=("conversations.weight", "mask")))[0]
    assert sample.unused == ("conversations.weight", "conversations.mask")


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"text": "a", "text": "b"}')
    with pytest.raises(
        ValueError,
        match=r"line 1: not valid JSON: an object has the key 'text' "
        r"twice",
    ):
        open_source(Source(path=str(tmp_path / "d.jsonl"), format="text_jsonl"))[0]
