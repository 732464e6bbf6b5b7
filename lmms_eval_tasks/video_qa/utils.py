"""What lmms-eval calls for video question answering that it does not ship: MSVD, MSRVTT, TGIF,
IntentQA, STAR, TVQA.

In: a row of `test.csv`, in the columns of IG-VLM (https://github.com/imagegridworth/IG-VLM, whose
files M3 evaluated on): `video_name`, `question`, `answer`, and for multiple choice `a0` ... `a4`
with `answer` their number. The data lie under HF_HOME, which `m3 sweep --data-root` sets:
`MSVD-QA/test.csv`, `MSVD-QA/videos/NAME.mp4`, and likewise for the others.
"""

import os
import re
from functools import partial
from pathlib import Path
from typing import Any

LETTERS = "ABCDE"


def doc_to_visual(dataset: str, doc: dict[str, Any]) -> list[str]:
    """The path of the video; a name without an ending is an .mp4."""
    name = str(doc["video_name"])
    folder = Path(os.environ["HF_HOME"]) / dataset / "videos"
    path = folder / (name if Path(name).suffix else f"{name}.mp4")
    if not path.is_file():
        raise FileNotFoundError(f"no video {path}")
    return [str(path)]


msvd_visual = partial(doc_to_visual, "MSVD-QA")
msrvtt_visual = partial(doc_to_visual, "MSRVTT-QA")
tgif_visual = partial(doc_to_visual, "TGIF-QA")
intentqa_visual = partial(doc_to_visual, "IntentQA")
star_visual = partial(doc_to_visual, "STAR")
tvqa_visual = partial(doc_to_visual, "TVQA")


def open_text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, str] | None = None) -> str:
    """The question, between the prompts set for the model."""
    prompts = lmms_eval_specific_kwargs or {}
    return f"{prompts.get('pre_prompt', '')}{doc['question']}{prompts.get('post_prompt', '')}"


def options(doc: dict[str, Any]) -> list[str]:
    """The choices that the row has, four or five."""
    return [str(doc[f"a{i}"]) for i in range(5) if doc.get(f"a{i}") is not None]


def choice_text(
    doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, str] | None = None
) -> str:
    """The question and its lettered choices, each on a line."""
    prompts = lmms_eval_specific_kwargs or {}
    lines = [
        doc["question"],
        *(f"{letter}. {text}" for letter, text in zip(LETTERS, options(doc), strict=False)),
    ]
    return f"{prompts.get('pre_prompt', '')}{chr(10).join(lines)}{prompts.get('post_prompt', '')}"


def choice_target(doc: dict[str, Any]) -> str:
    """The letter of the right choice."""
    return LETTERS[int(doc["answer"])]


def normalise(text: str) -> str:
    """Lower case, no articles, no punctuation, single spaces."""
    words = re.sub(r"[^\w\s]", " ", text.lower()).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def open_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """The data sets' own measure: 1 when the answer is the expected word, else 0.

    (Recent papers let a model judge.)
    """
    return {"exact_match": float(normalise(results[0]) == normalise(str(doc["answer"])))}


def chosen(text: str, doc: dict[str, Any]) -> str:
    """The letter that an answer names: alone or in front ("B", "B.", "(B) ..."), or the choice
    it repeats; "" for neither.
    """
    found = re.match(r"\s*\(?([A-E])(?:[).:,]|\s*$)", text)
    if found:
        return found[1]
    same = [
        letter
        for letter, option in zip(LETTERS, options(doc), strict=False)
        if normalise(option) == normalise(text)
    ]
    return same[0] if len(same) == 1 else ""


def choice_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 when the right choice is named, else 0; an answer that names none is wrong, never
    guessed.
    """
    return {"exact_match": float(chosen(results[0], doc) == choice_target(doc))}
