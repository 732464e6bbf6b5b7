"""Questions and answers in turn become a conversation.

Images stand before the first question, unless a question says `<image>`.
"""

from collections.abc import Sequence
from typing import Any

from m3.data.formats.fields import RecordFields, shorten
from m3.data.formats.parsers.conversation import check_key, rows_of
from m3.data.formats.record import Record, RecordParser
from m3.data.formats.settings import SourceSettings
from m3.data.sample import IMAGE_MARK, Sample, Turn


def parse_ocr(record: Record, settings: SourceSettings) -> Sample:
    """{"id", "image", "data": [prompt, answer, prompt, answer, ...]}: mllm-npu's OCR data."""
    check_key(record, "data", "id, image and data,")
    parser = RecordParser(record, settings)
    texts = parser.fields.read_raw("data")
    if (
        not isinstance(texts, list)
        or not texts
        or len(texts) % 2
        or not all(isinstance(text, str) for text in texts)
    ):
        raise ValueError(
            f"{record.location}: 'data' must be a list [prompt, answer, prompt, answer, ...], got "
            f"{shorten(texts)}"
        )
    return make_dialogue(parser, texts)


def parse_question(record: Record, settings: SourceSettings) -> Sample:
    """{"question", "answer", "image" | "images"}."""
    parser = RecordParser(record, settings)
    question, answer = parser.fields.read_raw("question"), parser.fields.read_raw("answer")
    if not isinstance(question, str) or not isinstance(answer, str):
        raise ValueError(
            f"{record.location}: 'question' and 'answer' must be texts, got {shorten(question)} "
            f"and {shorten(answer)}"
        )
    return make_dialogue(parser, [question, answer])


def parse_rounds(record: Record, settings: SourceSettings) -> Sample:
    """{"images", "texts": [{"user", "assistant"}, ...]}: the_cauldron's and FineVision's."""
    parser = RecordParser(record, settings)
    rounds = rows_of(parser.fields.read_raw("texts"))
    texts: list[str] = []
    for number, entry in enumerate(rounds if isinstance(rounds, list) else [rounds]):
        texts += _read_round(entry, f"{record.location}, texts {number}", parser)
    return make_dialogue(parser, texts)


def _read_round(entry: Any, location: str, parser: RecordParser) -> tuple[str, str]:
    values = entry if isinstance(entry, dict) else {}
    fields = RecordFields(values, location, parser.unused, "texts")
    question, answer = fields.read_raw("user"), fields.read_raw("assistant")
    if not isinstance(question, str) or not isinstance(answer, str):
        raise ValueError(
            f"{location}: expected an object with 'user' and 'assistant', texts both; got "
            f"{shorten(entry)}"
        )
    fields.close()
    return question, answer


def make_dialogue(parser: RecordParser, texts: Sequence[str]) -> Sample:
    """The conversation of `texts`, questions and answers in turn."""
    images = parser.read_images()
    if texts and not any(IMAGE_MARK in question for question in texts[::2]):
        texts = [f"{IMAGE_MARK}\n" * len(images) + texts[0], *texts[1:]]
    turns = [Turn("assistant" if number % 2 else "user", text) for number, text in enumerate(texts)]
    return parser.make_sample(images, turns)
