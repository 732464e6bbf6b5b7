"""Every kind of broken input says which file, which record, what is wrong and what to do."""

import base64
import gzip
import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from format_files import picture, talk, write_lines, write_tar

from m3.data.formats import FormatName, FormatSamples
from m3.data.formats.readers.files import find_files
from m3.data.formats.readers.json_records import JsonLines
from m3.data.recipe import Source, open_source
from m3.processing.images import load_image

Make = Callable[[Path], Any]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def line(record: Any) -> Make:
    """A JSONL whose second line holds `record`."""
    good = {
        "text": "a",
        "text_list": ["a"],
        "image_info": [],
        "image": "a",
        "data": ["a", "b"],
        "messages": [],
    }
    return lambda folder: write_lines(folder / "d.jsonl", [good, record])


def write(name: str, content: bytes) -> Make:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def members(**content: bytes | dict[str, Any]) -> Make:
    """A tar of one sample `k`; `png_0` is its member `k.0.png`."""
    named = {
        "k." + ".".join(reversed(name.split("_"))): value
        if isinstance(value, bytes)
        else json.dumps(value).encode()
        for name, value in content.items()
    }
    return lambda folder: write_tar(folder / "d.tar", named)


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


IMAGE = [{"type": "image"}]
BROKEN_RECORDS: list[tuple[FormatName, Make, str]] = [
    (
        "llava_json",
        line({"conversations": talk(0)}),
        r"d\.jsonl, line 2: sample '1': 1 <image> "
        r"marks .* but 0 images",
    ),
    (
        "llava_json",
        line([]),
        r"d\.jsonl, line 2: expected an object with id, image and "
        r"conversations, got a list",
    ),
    (
        "aria_jsonl",
        line({"text": "a"}),
        r"line 2: expected an object with messages, and images or "
        r"video; got text",
    ),
    (
        "aria_jsonl",
        line({"messages": "a"}),
        r"line 2: 'messages' must be a list of messages, got "
        r"'a'",
    ),
    (
        "aria_jsonl",
        line({"messages": [{"role": "user"}]}),
        r"message 0: expected an object with "
        r"'role' and 'content'",
    ),
    (
        "aria_jsonl",
        line({"messages": [message("tool", "a")]}),
        r"'role' must be one of human, .* "
        r"system, got 'tool'",
    ),
    (
        "aria_jsonl",
        line({"messages": [message("system", "a")]}),
        r"behind a system prompt or none; "
        r"got system",
    ),
    (
        "aria_jsonl",
        line({"messages": [message("user", 3)]}),
        r"'content' must be text or a list of "
        r"parts, got 3",
    ),
    (
        "aria_jsonl",
        line({"messages": [message("user", [{"type": "audio"}])]}),
        r"expected a part with type text, image",
    ),
    (
        "aria_jsonl",
        line({"messages": [message("user", "a"), message("assistant", IMAGE)]}),
        r"only users show images",
    ),
    (
        "aria_jsonl",
        line({"messages": [message("user", IMAGE), message("assistant", "b")]}),
        r"1 <image> marks .* 0 im",
    ),
    (
        "aria_jsonl",
        line({"messages": [message("user", "a"), message("assistant", " ")]}),
        r"answer in turn 1 is empty",
    ),
    (
        "aria_jsonl",
        line({"messages": [message("user", [{"type": "video"}])]}),
        r"part of type "
        r"video, but the "
        r"record",
    ),
    (
        "aria_jsonl",
        line({"messages": [], "images": ["a"], "video": {"path": "b"}}),
        r"one or the "
        r"other",
    ),
    (
        "aria_jsonl",
        line({"messages": [], "video": 3}),
        r"'video' must be a path, or an object with 'path' and 'num_frames'",
    ),
    (
        "aria_jsonl",
        line({"messages": [], "video": "b.mp4"}),
        r"d\.jsonl, line 2: .*b\.mp4: no such "
        r"video file",
    ),
    (
        "aria_jsonl",
        line({"messages": [], "video": {"path": "b.mp4"}}),
        r"d\.jsonl, line 2: .*b\.mp4",
    ),
    (
        "text_jsonl",
        line({"text": "a \ud800"}),
        r"line 2: document '1': text 0 holds half of a "
        r"character \(U\+D800\)",
    ),
    (
        "llava_json",
        line(
            {"conversations": [{"from": "human", "value": "\udfff"}, {"from": "gpt", "value": "a"}]}
        ),
        r"turn 0 holds half of a character",
    ),
    (
        "text_jsonl",
        write("d.jsonl", b"[" * 100_000),
        r"d\.jsonl, line 1: not valid JSON: nested "
        r"too deeply",
    ),
    (
        "text_jsonl",
        write("d.jsonl", b"9" * 5000),
        r"d\.jsonl, line 1: not valid JSON: Exceeds the "
        r"limit",
    ),
    (
        "ocr_jsonl",
        line({"image": "a"}),
        r"line 2: expected an object with id, image and data, got "
        r"image",
    ),
    (
        "ocr_jsonl",
        line({"image": "a", "data": ["a"]}),
        r"'data' must be a list \[prompt, answer, "
        r".* got \['a'\]",
    ),
    (
        "ocr_jsonl",
        line({"image": "a", "data": ["a", " "]}),
        r"line 2: sample '1': the answer in "
        r"turn 1 is empty",
    ),
    ("ocr_jsonl", line({"image": 3, "data": ["a", "b"]}), r"line 2: 'image' must be a path"),
    ("text_jsonl", line({"txt": "a"}), r"line 2: expected an object with 'text', got txt"),
    (
        "text_jsonl",
        line({"text": " "}),
        r"line 2: document '1': has no text; there is nothing to "
        r"learn",
    ),
    ("text_jsonl", line({}), r"got an empty object"),
    (
        "interleaved_jsonl",
        line({"text_list": ["a"]}),
        r"line 2: expected an object with "
        r"'text_list' .*'image_info'",
    ),
    (
        "interleaved_jsonl",
        line({"text_list": ["a"], "image_info": [{}]}),
        r"image 0: expected 'image_name' and a 'match",
    ),
    (
        "interleaved_jsonl",
        line({"text_list": ["a"], "image_info": [{"image_name": "a", "matched_text_index": 1}]}),
        r"from 0 to 0, got",
    ),
    (
        "interleaved_jsonl",
        line({"text_list": [" "], "image_info": []}),
        r"line 2: document '1': "
        r"has no text",
    ),
    (
        "caption_tar",
        members(txt=b"a"),
        r"d\.tar, sample 'k': expected one image, got 0 \(members: "
        r"\.txt\)",
    ),
    ("caption_tar", members(png=b"a"), r"has no caption; expected a \.txt or a \.json member"),
    ("caption_tar", members(png=b"a", txt=b" "), r"d\.tar, sample 'k': document 'k': has no text"),
    ("caption_tar", members(png=b"a", txt=b"\xff"), r"d\.tar, sample 'k': not UTF-8 text"),
    (
        "caption_tar",
        members(png=b"a", json={"text": "a"}),
        r"sample 'k': expected an object with "
        r"'caption', got text",
    ),
    ("caption_tar", members(png=b"a", json=b"{"), r"d\.tar, sample 'k': not valid JSON"),
    ("llava_tar", members(png=b"a"), r"sample 'k': expected one \.json member, got 0"),
    (
        "llava_tar",
        members(json=b"[]"),
        r"sample 'k': expected an object with conversations, got "
        r"\[\]",
    ),
    (
        "llava_tar",
        members(json={"conversations": talk(0)}),
        r"sample 'k': 1 <image> marks .* but 0 "
        r"images",
    ),
    (
        "llava_tar",
        members(png=b"a", json={"conversations": talk(0), "image": "b.png"}),
        r"names 'b\.png', which is no",
    ),
    ("llava_tar", members(json={"conversations": talk(0), "image": 3}), r"'image' must be a path"),
    ("interleaved_tar", members(png=b"a"), r"expected one \.json member, got 0"),
    (
        "interleaved_tar",
        members(json={"texts": ["a"]}),
        r"'texts' and 'images', lists of one length",
    ),
    (
        "interleaved_tar",
        members(json={"texts": ["a"], "images": ["b"]}),
        r"slot 0 must hold a text "
        r"or the name of an",
    ),
    (
        "interleaved_tar",
        members(json={"texts": [None], "images": ["0.png"]}),
        r"names '0\.png', "
        r"which is no member",
    ),
    (
        "interleaved_tar",
        members(png_0=b"a", json={"texts": [None], "images": ["0.png"]}),
        r"'k': has no text",
    ),
]


@pytest.mark.parametrize(("name", "make", "text"), BROKEN_RECORDS)
def test_broken_records(name: FormatName, make: Make, text: str, tmp_path: Path) -> None:
    source = open_source(Source(path=str(make(tmp_path)), format=name))
    with pytest.raises(ValueError, match=text):
        source[len(source) - 1]


def cut(size: int) -> Make:
    """A tar of two samples that ends too early."""

    def make(folder: Path) -> Path:
        path = write_tar(folder / "d.tar", {"a.txt": b"x" * 2000, "b.txt": b"y" * 2000})
        path.write_bytes(path.read_bytes()[:size])
        return path

    return make


def garbled(folder: Path) -> Path:
    path = write_tar(folder / "d.tar", {"a.txt": b"x", "b.txt": b"y"})
    content = bytearray(path.read_bytes())
    content[1024:1100] = b"\x7f" * 76  # the header of the second member
    path.write_bytes(content)
    return path


def zipped(folder: Path) -> Path:
    path = folder / "d.tar"
    path.write_bytes(gzip.compress(write_tar(folder / "e.tar", {"a.txt": b"x"}).read_bytes()))
    return path


def text_column(folder: Path) -> Path:
    pq.write_table(pa.table({"title": ["a"]}), folder / "d.parquet")
    return folder


def linked(folder: Path) -> Path:
    """A tar in which a picture is a hard link to another member."""
    path = write_tar(folder / "d.tar", {"a.png": picture(0), "a.txt": b"a"})
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo("b.png")
        info.type, info.linkname = tarfile.LNKTYPE, "a.png"
        tar.addfile(info)
    return path


def sparse(folder: Path) -> Path:
    """A tar whose member is stored without its holes."""
    path = write_tar(folder / "d.tar", {"a.txt": b"x" * 1024})
    content = bytearray(path.read_bytes())
    content[156:157] = tarfile.GNUTYPE_SPARSE
    # one stretch of 1024 bytes from 0
    content[386:482] = (b"00000000000\0" + b"00000002000\0") + bytes(72)
    content[482:495] = b"\0" + b"00000010000\0"  # no more stretches; 4096 bytes in all
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    path.write_bytes(content)
    return path


def joined(folder: Path) -> Path:
    """`cat a.tar b.tar`."""
    one, two = (
        write_tar(folder / f"{name}.part", {f"{name}.txt": b"x"}).read_bytes() for name in "ab"
    )
    (folder / "d.tar").write_bytes(one + two)
    return folder / "d.tar"


def dangling(name: str) -> Make:
    """A folder of two files, of which one is a link to nothing."""

    def make(folder: Path) -> Path:
        (folder / f"a{name}").write_text('{"text": "a"}\n')
        (folder / f"b{name}").symlink_to(folder / "nowhere")
        return folder

    return make


PICKLED = pickle.dumps({"texts": ["a"], "images": [None]})
CANNOT_BE_OPENED: list[tuple[FormatName, Make, str]] = [
    (
        "caption_tar",
        cut(1000),
        r"d\.tar: not a whole tar file \(unexpected end of data\)\. Copy or "
        r"download it again",
    ),
    (
        "caption_tar",
        cut(512 + 2048),
        r"d\.tar: the tar is cut short or damaged at byte 2,560, "
        r"behind 1 members",
    ),
    (
        "caption_tar",
        cut(2 * (512 + 2048)),
        r"d\.tar: the tar is cut short or damaged at byte "
        r"5,120, behind 2 members",
    ),
    ("caption_tar", garbled, r"cut short or damaged at byte 1,024, behind 1 members"),
    (
        "caption_tar",
        zipped,
        r"d\.tar: is compressed \(gzip\), so no sample can be reached at "
        r"once\. Decompress it",
    ),
    (
        "caption_tar",
        linked,
        r"d\.tar: member 'b\.png' is a link to 'a\.png', which would be left out; write .* "
        r"--hard-der",
    ),
    ("caption_tar", sparse, r"d\.tar: member 'a\.txt' is stored without its holes"),
    (
        "caption_tar",
        joined,
        r"d\.tar: has more behind its end, at byte 10,240: several tars in one file\? .*one by one",
    ),
    ("text_jsonl", dangling(".jsonl"), r"b\.jsonl: is a link to a file that is not there"),
    ("text_files", dangling(".txt"), r"b\.txt: is a link to a file that is not there"),
    (
        "text_jsonl",
        write("d.jsonl.gz", gzip.compress(b"{}\n")),
        r"d\.jsonl\.gz: is compressed \(gzip\).* Decompress it",
    ),
    (
        "llava_json",
        write("d.json", gzip.compress(b"[]")),
        r"d\.json: is compressed \(gzip\).* "
        r"Decompress it",
    ),
    ("text_files", write("a.txt", b"\xef\xbb\xbf\n"), r"a\.txt: holds no text"),
    ("caption_tar", write("d.tar", b"no tar"), r"d\.tar: not a whole tar file"),
    (
        "caption_tar",
        lambda folder: write_tar(folder / "d.tar", {"README": b"x"}),
        r"holds no samples; expected members",
    ),
    (
        "interleaved_tar",
        members(pkl=PICKLED),
        r"member 'k\.pkl' is a pickle\. Opening one can run any program .*docs/da",
    ),
    (
        "interleaved_jsonl",
        write("d.pkl", PICKLED),
        r"d\.pkl: is a pickle\. Opening one .* Write its content as JSON lines",
    ),
    ("text_jsonl", write("d.jsonl", b"\n \n"), r"d\.jsonl: holds no records"),
    ("text_jsonl", lambda folder: folder, r": holds no \*\.jsonl"),
    ("aria_jsonl", lambda folder: folder, r": holds no train\.jsonl"),
    (
        "text_files",
        lambda folder: folder,
        r"holds no text files; looked for \.c .*Name a file to "
        r"read any other",
    ),
    (
        "text_files",
        write("a.txt", b"a\xff"),
        r"a\.txt: not UTF-8 text .*Convert it, or take it out "
        r"of the folder",
    ),
    ("text_files", write("a.txt", b" \n"), r"a\.txt: holds no text"),
    ("text_files", lambda folder: folder / "nowhere", r"nowhere: no such file or folder"),
    (
        "hf_dataset",
        text_column,
        r"has none of the columns conversations, messages, .*text, caption "
        r"\(columns: title\)",
    ),
    ("hf_dataset", lambda folder: folder / "nowhere", r"nowhere: cannot be read as a data set"),
]


@pytest.mark.parametrize(("name", "make", "text"), CANNOT_BE_OPENED)
def test_files_that_cannot_be_opened(
    name: FormatName, make: Make, text: str, tmp_path: Path
) -> None:
    (tmp_path / "d").mkdir()
    with pytest.raises(ValueError, match=text):
        open_source(Source(path=str(make(tmp_path / "d")), format=name))


def test_a_bad_line_spoils_one_record(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        b'\xef\xbb\xbf{"text": "a"}\n\n  \n{"text":\n{"text": "\xff"}\n{"text": "d"}'
    )
    source = open_source(Source(path=str(tmp_path / "*.jsonl"), format="text_jsonl"))
    assert len(source) == 4
    assert [source[n].id for n in (0, 3)] == ["0", "3"]
    with pytest.raises(ValueError, match=r"a\.jsonl, line 4: not valid JSON: Expecting value"):
        source[1]
    with pytest.raises(ValueError, match=r"a\.jsonl, line 5: not UTF-8 text"):
        source[2]


def test_lines_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m3.data.formats.readers.json_records._BLOCK_SIZE", 7)
    lines = [json.dumps({"n": n, "pad": "x" * (n * 37 % 100)}) for n in range(20)]
    (tmp_path / "a.jsonl").write_text("\r\n".join(lines))
    found = JsonLines(Source(path=str(tmp_path / "a.jsonl")))
    assert [found[n].content["n"] for n in range(len(found))] == list(range(20))


def test_paths_that_mean_no_file(tmp_path: Path) -> None:
    for path, text in (
        ("a-{0..3}.tar", r"Braces are not expanded; write shards-\*\.tar"),
        ("*.tar", "matches no file"),
    ):
        with pytest.raises(ValueError, match=text):
            find_files(tmp_path / path, ".tar")


def read_text(path: Path, chunk_bytes: int | None = None) -> FormatSamples:
    return open_source(Source(path=str(path), format="text_files", chunk_bytes=chunk_bytes))


def test_text_is_split_at_lines_and_between_characters(tmp_path: Path) -> None:
    text = "short\n" + "日本語" * 20 + "\n\n\nend"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    source = read_text(tmp_path / "a.txt", chunk_bytes=16)
    pieces = [source[n].texts[0] for n in range(len(source))]
    assert pieces[0] == "short\n"
    assert "".join(pieces).replace("\n", "") == text.replace("\n", "")
    assert max(len(piece.encode()) for piece in pieces) <= 16
    assert len(read_text(tmp_path / "a.txt", chunk_bytes=1)) == 5 + 60 + 3, (
        "a character is never cut"
    )


def test_a_tar_with_folders_links_and_hidden_files(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "d.tar", "w") as tar:
        for name, kind in (("part", tarfile.DIRTYPE), ("part/k.png", None), ("latest", tarfile.SYMTYPE), (".x.png", None),
                           ("other/k.png", None), ("part/k.txt", None)):  # fmt: skip
            info = tarfile.TarInfo(name)
            content = b"" if kind else picture(0) if name.endswith("png") else b"words"
            info.type, info.size, info.linkname = (
                kind or tarfile.REGTYPE,
                len(content),
                "/etc/passwd",
            )
            tar.addfile(info, io.BytesIO(content))
    source = open_source(Source(path=str(tmp_path / "d.tar"), format="caption_tar"))
    assert len(source) == 2, "a key is a path: part/k and other/k are two samples"
    assert source[0].texts == ("", "words")
    with pytest.raises(ValueError, match="sample 'other/k': has no caption"):
        source[1]


def test_an_id_that_is_null_is_none(tmp_path: Path) -> None:
    """Else every such record would be called 'None', and the check would find it twice."""
    records: dict[FormatName, dict[str, Any]] = {
        "text_jsonl": {"text": "a"},
        "ocr_jsonl": {"image": "a", "data": ["a", "b"]},
        "aria_jsonl": {"messages": [message("user", "a"), message("assistant", "b")]},
        "interleaved_jsonl": {"text_list": ["a"], "image_info": []},
    }
    for name, record in records.items():
        path = write_lines(tmp_path / f"{name}.jsonl", [record | {"id": None}] * 2)
        source = open_source(Source(path=str(path), format=name))
        assert [source[n].id for n in (0, 1)] == ["0", "1"], name


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfwords")
    assert read_text(tmp_path / "a.txt")[0].texts == ("words",)
    path = write_tar(tmp_path / "d.tar", {"k.png": picture(0), "k.txt": b"\xef\xbb\xbfwords"})
    assert open_source(Source(path=str(path), format="caption_tar"))[0].texts == ("", "words")


def test_a_member_whose_name_is_no_utf8(tmp_path: Path) -> None:
    with tarfile.open(
        tmp_path / "d.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1"
    ) as tar:
        for name, content in (("caf\xe9.png", picture(0)), ("caf\xe9.txt", b"words")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    source = open_source(Source(path=str(tmp_path / "d.tar"), format="caption_tar"))
    assert source[0].id == r"caf\xe9"
    source[0].id.encode()


def test_an_image_address_within_a_record(tmp_path: Path) -> None:
    address = "data:image/png;base64," + base64.b64encode(picture(0)).decode()
    path = write_lines(tmp_path / "d.jsonl", [{"image": address, "conversations": talk(0)}])
    (image,) = open_source(Source(path=str(path)))[0].images
    assert load_image(image).size == (24, 24)
