"""Small copies of five real benchmarks in exactly the layout of their data sets: names, columns,
types, splits, folders.
"""

import csv
import io
import json
from pathlib import Path

import av
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, Sequence, Value
from PIL import Image as PilImage

from tests.evaluation.conftest import COLOURS, make_image

TEXT = Value("string")


def cell(index: int) -> dict:
    buffer = io.BytesIO()
    make_image(index).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def write(
    folder: Path, split: str, features: dict, rows: list[dict], config: str | None = None
) -> None:
    """`data/SPLIT-00000-of-00001.parquet` (under the configuration's folder, where there is
    one), and the card that names it.
    """
    inside = folder / (config or "data")
    inside.mkdir(parents=True)
    table = pa.Table.from_pylist(rows, schema=Features(features).arrow_schema)
    pq.write_table(table, inside / f"{split}-00000-of-00001.parquet")
    name, path = config or "default", f"{inside.name}/{split}-*"
    card = f"---\nconfigs:\n- config_name: {name}\n  data_files:\n  - split: {split}\n    path: {path}\n---\n"
    (folder / "README.md").write_text(card)


def write_mirrors(root: Path, documents: int = 6) -> Path:
    """POPE, TextVQA, ChartQA, MMBench (en, dev) and NExT-QA (multiple choice) under `root`."""
    several = range(documents)
    write(
        root / "POPE",
        "test",
        {"id": TEXT, "question_id": TEXT, "question": TEXT, "answer": TEXT, "image_source": TEXT, "image": Image(),
         "category": TEXT},
        [{"id": str(i), "question_id": str(i), "question": f"Is there a {COLOURS[i % 6]} square in "
                                                           "the image?",
          "answer": ("yes", "no")[i % 2], "image_source": f"COCO_{i}", "image": cell(i), "category": "adversarial"}
         for i in several],
    )  # fmt: skip
    write(
        root / "textvqa",
        "validation",
        {"image_id": TEXT, "question_id": Value("int32"), "question": TEXT, "question_tokens": Sequence(TEXT),
         "image": Image(), "answers": Sequence(TEXT), "ocr_tokens": Sequence(TEXT), "set_name": TEXT},
        [{"image_id": str(i), "question_id": i, "question": "what does the <image> sign say?", "question_tokens": [],
          "image": cell(i), "answers": [COLOURS[i % 6]] * 10, "ocr_tokens": [], "set_name": "val"} for i in several],
    )  # fmt: skip
    write(
        root / "ChartQA",
        "test",
        {"type": TEXT, "question": TEXT, "answer": TEXT, "image": Image()},
        [{"type": ("human_test", "augmented_test")[i % 2], "question": "How many bars are "
                                                                       f"{COLOURS[i % 6]}?",
          "answer": str(i), "image": cell(i)} for i in several],
    )  # fmt: skip
    choices = dict.fromkeys("ABCD", TEXT)
    write(
        root / "MMBench",
        "dev",
        {"index": Value("int64"), "question": TEXT, "hint": TEXT, "answer": TEXT, **choices, "category": TEXT, "image": Image(),
         "source": TEXT, "L2-category": TEXT, "comment": TEXT, "split": TEXT},
        [{"index": i, "question": "Which colour?", "hint": "nan", "answer": "ABCD"[i % 4], "A": "red", "B": "green", "C": "blue",
          "D": "white", "category": "attribute_recognition", "image": cell(i), "source": "s", "L2-category": "finegrained",
          "comment": "nan", "split": "dev"} for i in several],
        config="en",
    )  # fmt: skip
    numbers = {name: Value("int64") for name in ("frame_count", "width", "height", "answer", "qid")}
    options = {f"a{i}": TEXT for i in range(5)}
    write(
        root / "NExTQA",
        "test",
        {"video": TEXT, **numbers, "question": TEXT, "type": TEXT, **options},
        [{"video": str(1000 + i), "frame_count": 12, "width": 24, "height": 24, "answer": i % 5, "qid": i,
          "question": "what colour does it turn", "type": "DC", **{f"a{k}": COLOURS[k] for k in range(5)}} for i in several],
        config="MC",
    )  # fmt: skip
    for i in several:
        write_video(root / "nextqa" / "NExTVideo" / f"{1000 + i}.mp4", i)
    return root


def write_activitynetqa(root: Path, documents: int = 4) -> Path:
    """ActivityNet-QA (open questions, a judge scores the answers)."""
    write(
        root / "ActivityNetQA",
        "test",
        dict.fromkeys(("video_name", "question", "question_id", "answer", "type"), TEXT),
        [{"video_name": f"clip{i}", "question": "what colour is it", "question_id": f"q{i}", "answer": COLOURS[i % 6],
          "type": "4"} for i in range(documents)],
    )  # fmt: skip
    for i in range(documents):
        write_video(root / "activitynetqa" / "all_test" / f"v_clip{i}.mp4", i)
    return root


SRT = '1\n00:00:00,000 --> 00:00:00,900\n<font color="white" size=".72c">{}</font>\n\n'


def write_long_videos(root: Path, documents: int = 3) -> Path:
    """Video-MME and LongVideoBench, their videos and subtitles where the repositories' archives
    unpack to.
    """
    several = range(documents)
    texts = (
        "video_id",
        "duration",
        "domain",
        "sub_category",
        "url",
        "videoID",
        "question_id",
        "task_type",
        "question",
        "answer",
    )
    write(
        root / "Video-MME",
        "test",
        dict.fromkeys(texts, TEXT) | {"options": Sequence(TEXT)},
        [{"video_id": f"{i:03}", "duration": ("short", "medium", "long")[i % 3], "domain": "Knowledge",
          "sub_category": "Astronomy", "url": "u", "videoID": f"tube{i}", "question_id": f"{i:03}-1",
          "task_type": "Counting Problem", "question": "How many?", "options": ["A. One.", "B. Two.", "C. Three.", "D. Four."],
          "answer": "ABCD"[i % 4]} for i in several],
        config="videomme",
    )  # fmt: skip
    texts = ("video_id", "question", "question_wo_referring_query", "question_category", "topic_category", "id", "video_path",
             "subtitle_path", "level", *(f"option{i}" for i in range(5)))  # fmt: skip
    numbers = {"correct_choice": Value("int64"), "duration_group": Value("int64"), "view_count": Value("int64"),
               "starting_timestamp_for_subtitles": Value("float64"), "duration": Value("float64")}  # fmt: skip
    write(
        root / "LongVideoBench",
        "validation",
        dict.fromkeys(texts, TEXT) | numbers | {"position": Sequence(Value("int64"))},
        [{"video_id": f"long{i}", "question": "What colour does it turn?", "question_wo_referring_query": "", "id": f"long{i}_0",
          "question_category": "S2E", "topic_category": "NP-News-Programs", "video_path": f"long{i}.mp4",
          "level": "L1", "subtitle_path": f"long{i}_en.json", "option0": "red", "option1": "green", "option2": "blue",
          "option3": "white", "option4": ("black", "N/A")[i % 2], "correct_choice": i % 4,
          "duration_group": 15, "view_count": 1, "duration": 3.0,
          "starting_timestamp_for_subtitles": 0.0, "position": [1]} for i in several],
    )  # fmt: skip
    tube, long = root / "videomme", root / "datasets" / "longvideobench"
    for folder in (tube / "subtitle", long / "subtitles"):
        folder.mkdir(parents=True)
    for i in several:
        write_video(tube / "data" / f"tube{i}.mp4", i)
        write_video(long / "videos" / f"long{i}.mp4", i, frames=36)
        if i:  # the first has none, as some of the real ones
            (tube / "subtitle" / f"tube{i}.srt").write_text(SRT.format(f"spoken {i}"))
        lines = [{"start": "00:00:00.000", "end": "00:00:01.500", "line": f"said {i}"}]
        (long / "subtitles" / f"long{i}_en.json").write_text(json.dumps(lines))
    return root


def write_video(path: Path, index: int, frames: int = 12) -> None:
    """A second of pictures that change."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for time in range(frames):
            picture = make_image(index + time // 3).resize((64, 64), PilImage.Resampling.NEAREST)
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode(None))


def write_video_qa(root: Path) -> Path:
    """MSVD-QA (open) and IntentQA (choices) as lmms_eval_tasks/video_qa reads them."""
    for name, rows in (
        ("MSVD-QA", [{"video_name": "clip", "question": "what is it?", "answer": "a red square"}]),
        (
            "IntentQA",
            [
                {
                    "video_name": "clip.mp4",
                    "question": "why?",
                    "answer": 1,
                    **{f"a{i}": COLOURS[i] for i in range(5)},
                }
            ],
        ),
    ):
        write_video(root / name / "videos" / "clip.mp4", 0)
        with (root / name / "test.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return root
