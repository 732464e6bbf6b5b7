"""Files of every data format, exactly as the format has them: four samples each, made of little
pictures and words.
"""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from m3.data.recipe import Source
from m3.data.sample import AnySample, Document, Sample, Turn

COUNT = 4
COLOURS = ("red", "green", "blue", "white")


def picture(n: int, size: int = 24) -> bytes:
    """A PNG of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), COLOURS[n]).save(buffer, "PNG")
    return buffer.getvalue()


def pictures(folder: Path) -> None:
    """`0.png` ... in `folder`."""
    folder.mkdir(exist_ok=True)
    for n in range(COUNT):
        (folder / f"{n}.png").write_bytes(picture(n))


def write_lines(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def talk(n: int) -> list[dict[str, str]]:
    return [
        {"from": "human", "value": "<image>\nWhat colour is the background?"},
        {"from": "gpt", "value": COLOURS[n]},
    ]


def asked(n: int, image: str | bytes, id: str) -> Sample:
    """What `talk(n)` becomes."""
    turns = (Turn("user", "<image>\nWhat colour is the background?"), Turn("assistant", COLOURS[n]))
    return Sample(id, (image,), turns)


Written = tuple[Source, list[AnySample]]


def llava_json(folder: Path) -> Written:
    pictures(folder / "images")
    records = [{"id": f"s{n}", "image": f"{n}.png", "conversations": talk(n)} for n in range(COUNT)]
    (folder / "data.json").write_text(json.dumps(records))
    source = Source(
        path=str(folder / "data.json"), format="llava_json", image_folder=str(folder / "images")
    )
    return source, [asked(n, str(folder / "images" / f"{n}.png"), f"s{n}") for n in range(COUNT)]


def llava_parquet(folder: Path) -> Written:
    rows = {
        "id": [f"s{n}" for n in range(COUNT)],
        "image": [{"bytes": picture(n), "path": None} for n in range(COUNT)],
        "conversations": [talk(n) for n in range(COUNT)],
    }
    pq.write_table(pa.table(rows), folder / "data.parquet")
    source = Source(path=str(folder / "data.parquet"), format="llava_parquet")
    return source, [asked(n, picture(n), f"s{n}") for n in range(COUNT)]


def llava_tar(folder: Path) -> Written:
    """Two shards; the second names its image."""
    for shard in range(2):
        members = {}
        for n in (2 * shard, 2 * shard + 1):
            record: dict[str, Any] = {"conversations": talk(n)}
            if shard:
                record["image"] = f"s{n}.1.png"
            members[f"s{n}.{shard}.png"] = picture(n)
            members[f"s{n}.json"] = json.dumps(record).encode()
        write_tar(folder / f"shard-{shard}.tar", members)
    return Source(path=str(folder / "shard-*.tar"), format="llava_tar"), [
        asked(n, picture(n), f"s{n}") for n in range(COUNT)
    ]


def aria_jsonl(folder: Path) -> Written:
    pictures(folder)
    parts = [{"type": "image"}, {"type": "text", "text": "What colour is the background?"}]
    records: list[dict[str, Any]] = [
        {
            "messages": [
                {"role": "user", "content": parts},
                {"role": "assistant", "content": [{"type": "text", "text": COLOURS[n]}]},
            ],
            "images": [f"{n}.png"],
        }
        for n in range(COUNT)
    ]
    write_lines(folder / "train.jsonl", records)
    return Source(path=str(folder), format="aria_jsonl"), [
        asked(n, str(folder / f"{n}.png"), str(n)) for n in range(COUNT)
    ]


def caption_tar(folder: Path) -> Written:
    """Captions as text and as JSON."""
    members: dict[str, bytes] = {}
    for n in range(COUNT):
        members[f"part/{n}.png"] = picture(n)
        if n % 2:
            members[f"part/{n}.json"] = json.dumps(
                {"caption": f"the {COLOURS[n]} one", "similarity": 0.3}
            ).encode()
        else:
            members[f"part/{n}.txt"] = f"the {COLOURS[n]} one\n".encode()
    write_tar(folder / "captions.tar", members)
    return Source(path=str(folder / "captions.tar"), format="caption_tar"), [
        Document(f"part/{n}", (picture(n),), ("", f"the {COLOURS[n]} one")) for n in range(COUNT)
    ]


def interleaved_jsonl(folder: Path) -> Written:
    """One image before the second sentence, or two before the first and one before the second."""
    pictures(folder)
    records: list[dict[str, Any]] = [
        {
            "text_list": ["How many?", f"the {COLOURS[n]} one"],
            "image_info": [
                {
                    "image_name": f"{image}.png",
                    "matched_text_index": place,
                    "matched_sim": 0.2,
                    "raw_url": "x",
                }
                for image, place in ([(n, 1)] if n % 2 else [(0, 0), (1, 0), (n, 1)])
            ],
        }
        for n in range(COUNT)
    ]
    write_lines(folder / "docs.jsonl", records)
    documents: list[AnySample] = []
    for n in range(COUNT):
        shown = (n,) if n % 2 else (0, 1, n)
        texts = (
            ("How many?", f"the {COLOURS[n]} one")
            if n % 2
            else ("", "", "How many?", f"the {COLOURS[n]} one")
        )
        documents.append(
            Document(str(n), tuple(str(folder / f"{image}.png") for image in shown), texts)
        )
    return Source(path=str(folder / "docs.jsonl"), format="interleaved_jsonl"), documents


def interleaved_tar(folder: Path) -> Written:
    members: dict[str, bytes] = {}
    for n in range(COUNT):
        record = {
            "texts": [None, "the", f"{COLOURS[n]} one", None],
            "images": ["0.png", None, None, f"{n}.1.png"],
        }
        members |= {
            f"{n}.json": json.dumps(record).encode(),
            f"{n}.0.png": picture(n),
            f"{n}.1.png": picture(0),
        }
    write_tar(folder / "docs.tar", members)
    return Source(path=str(folder), format="interleaved_tar"), [
        Document(str(n), (picture(n), picture(0)), ("", f"the {COLOURS[n]} one", ""))
        for n in range(COUNT)
    ]


def ocr_jsonl(folder: Path) -> Written:
    pictures(folder)
    records = [
        {"id": f"o{n}", "image": f"{n}.png", "data": ["What colour?", COLOURS[n], "How many?", "1"]}
        for n in range(COUNT)
    ]
    write_lines(folder / "ocr.jsonl", records)
    return Source(path=str(folder / "ocr.jsonl"), format="ocr_jsonl", image_folder=str(folder)), [
        Sample(
            f"o{n}",
            (str(folder / f"{n}.png"),),
            (
                Turn("user", "<image>\nWhat colour?"),
                Turn("assistant", COLOURS[n]),
                Turn("user", "How many?"),
                Turn("assistant", "1"),
            ),
        )
        for n in range(COUNT)
    ]


def text_jsonl(folder: Path) -> Written:
    write_lines(
        folder / "text.jsonl", [{"text": f"the {colour} one", "meta": 1} for colour in COLOURS]
    )
    return Source(path=str(folder / "text.jsonl"), format="text_jsonl"), [
        Document(str(n), (), (f"the {colour} one",)) for n, colour in enumerate(COLOURS)
    ]


def text_files(folder: Path) -> Written:
    """Two files of two pieces each, one in a sub-folder; what is no text is left alone."""
    (folder / "src").mkdir()
    for number, name in enumerate(("a.py", "src/b.py")):
        (folder / name).write_text(
            "".join(f"the {COLOURS[2 * number + line]} one\n" for line in range(2))
        )
    (folder / "src" / "picture.png").write_bytes(picture(0))
    documents: list[AnySample] = []
    for number, name in enumerate(("a.py", "src/b.py")):
        first, second = (f"the {COLOURS[2 * number + line]} one\n" for line in range(2))
        documents.append(Document(f"{folder / name}:0", (), (first,)))
        documents.append(Document(f"{folder / name}:{len(first)}", (), (second,)))
    return Source(path=str(folder), format="text_files", chunk_bytes=18), documents


def hf_dataset(folder: Path) -> Written:
    """Messages and a list of images, as many data sets of the hub have them; only four of six
    are taken.
    """
    parts = [
        {"type": "image", "text": None},
        {"type": "text", "text": "What colour is the background?"},
    ]
    rows = {
        "messages": [
            [
                {"role": "user", "content": parts},
                {"role": "assistant", "content": [{"type": "text", "text": COLOURS[n % COUNT]}]},
            ]
            for n in range(6)
        ],
        "images": [[{"bytes": picture(n % COUNT), "path": None}] for n in range(6)],
    }
    pq.write_table(pa.table(rows), folder / "train-00000.parquet")
    return Source(path=str(folder), format="hf_dataset", split="train", take=COUNT), [
        asked(n, picture(n), str(n)) for n in range(COUNT)
    ]


WRITERS: dict[str, Callable[[Path], Written]] = {
    "llava_json": llava_json,
    "llava_parquet": llava_parquet,
    "llava_tar": llava_tar,
    "aria_jsonl": aria_jsonl,
    "caption_tar": caption_tar,
    "interleaved_jsonl": interleaved_jsonl,
    "interleaved_tar": interleaved_tar,
    "ocr_jsonl": ocr_jsonl,
    "text_jsonl": text_jsonl,
    "text_files": text_files,
    "hf_dataset": hf_dataset,
}
"""Format -> writes files into an empty folder; gives the source that a recipe would name, and
what must be read.
"""
