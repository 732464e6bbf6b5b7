"""What lmms-eval calls for the tasks of m3_tiny: prompt, picture and score of a document."""

import re
from typing import Any

from PIL import Image


def doc_to_visual(doc: dict[str, Any]) -> list[Image.Image]:
    """The document's one picture."""
    return [doc["image"].convert("RGB")]


def doc_to_text(
    doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, str] | None = None
) -> str:
    """The question, between the prompts set for the model."""
    prompts = lmms_eval_specific_kwargs or {}
    return f"{prompts.get('pre_prompt', '')}{doc['question']}{prompts.get('post_prompt', '')}"


def doc_to_messages(
    doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    """One user turn: the picture, then the question."""
    content: list[dict[str, Any]] = [
        {"type": "image", "url": image} for image in doc_to_visual(doc)
    ]
    content.append({"type": "text", "text": doc_to_text(doc, lmms_eval_specific_kwargs)})
    return [{"role": "user", "content": content}]


def normalise(text: str) -> str:
    """Lower case, no punctuation, single spaces."""
    return " ".join(re.sub(r"[^\w\s]", " ", text.lower()).split())


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 when the normalised answer is the expected one, else 0."""
    return {"exact_match": float(normalise(results[0]) == normalise(doc["answer"]))}
