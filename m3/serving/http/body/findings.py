"""Mistakes of a request's body in words: where, what was expected, what was there.

In: pydantic's findings and the body that they are about. Out: a sentence for each mistake, and the
place of the first as the client wrote it (`messages.0.content.1.image_url`). Names of our models
and of Python's types have no place in either.
"""

import difflib
import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from m3.serving.http.body.fields import TAG_MARK, Strict

LONGEST_PLACE, LONGEST_VALUE, LONGEST_REASON = 200, 40, 300
"""Characters that are told: a client's own words may be part of each."""
MOST_TOLD = 5
"""Mistakes of one body that are told."""
MISSING = "is missing"
UNKNOWN = "extra_forbidden"
"""Pydantic's name of a field that an object has not."""
NEAR = 0.75
"""Likeness of a mistyped name to the field that is proposed."""
KIND_FIELDS = ("role", "type")
"""Fields that say what an object is: with a mistake there, others of the object mean nothing."""
HINTS = {
    "extra_body": "what the official client is given as extra_body stands beside messages",
    "prompt": "the text belongs in messages",
}
"""Fields that are often sent and never there."""
KIND_ENDS = tuple((name,) for name in KIND_FIELDS)
Steps = tuple[str | int, ...]
"""The way to a place: `("messages", 0, "content")`."""
SHAPES = {
    "messages": 'a list of messages such as {"role": "user", "content": "..."}',
    "messages.*": 'a message such as {"role": "user", "content": "..."}',
    "role": '"system", "developer", "user" or "assistant"',
    "content": "a text or a list of parts",
    "content.*": 'a part such as {"type": "text", "text": "..."}',
    "content.*.type": '"text", "image_url" or "video_url"',
    "text": "a text",
    "image_url": '{"url": "data:image/png;base64,..."}',
    "video_url": '{"url": "data:video/mp4;base64,..."}',
    "url": 'an address such as "data:image/png;base64,..."',
    "detail": '"low", "high", "original" or "auto"',
    "matryoshka_vis_token_scale": "visual tokens such as 36, tokens at a resolution such as "
    '"36@48", a schedule over frames such as "144+1", or "auto"',
    "mm_processor_kwargs": '{"matryoshka_vis_token_scale": 36}',
    "model": "the model's name",
    "temperature": "a number from 0 to 2",
    "top_p": "a number above 0 and up to 1",
    "seed": "a whole number of 64 bits",
    "max_tokens": "a whole number, 1 or more",
    "max_completion_tokens": "a whole number, 1 or more",
    "max_new_tokens": "a whole number, 1 or more",
    "num_frames": "a whole number, 1 or more",
    "fps": "a number above 0",
    "stop": "a text of 1 to 200 characters, or a list of up to 4",
    "stop.*": "a text of 1 to 200 characters",
    "stream_options": '{"include_usage": true}',
    "response_format": '{"type": "text"}',
    "response_format.type": '"text"',
    "input_text": "a text",
    "image": "base64 of an image file",
}
"""What belongs to a field_path, by its end; `*` is any number."""
KINDS = {
    "string_type": "a text",
    "string_unicode": "a text without halves of surrogate pairs",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "finite_number": "a finite number",
    "greater_than_equal": "{ge} or more",
    "greater_than": "more than {gt}",
    "less_than_equal": "{le} or less",
    "less_than": "less than {lt}",
    "too_short": "a list of {min_length} or more",
    "too_long": "a list of {max_length} or fewer",
    "string_too_short": "a text of {min_length} or more characters",
    "string_too_long": "a text of {max_length} or fewer characters",
    "literal_error": "{expected}",
}
"""The same by pydantic's name of the mistake, where the place tells nothing."""
BODIES = {
    "/v1/chat/completions": '{"model": "...", "messages": [{"role": "user", "content": "..."}]}',
    "/v1/completions": '{"model": "...", "prompt": "..."}',
    "/v1/responses": '{"model": "...", "input": "..."}',
    "/generate": '{"input_text": "..."}',
}


@dataclass(frozen=True)
class Finding:
    """A mistake: `field_path` is empty where it is the whole body; `code` is for programs."""

    field_path: str
    reason: str
    code: str = "invalid_request"

    def __str__(self) -> str:
        if not self.field_path:
            return self.reason
        separator = " " if self.reason.startswith(MISSING) else ": "
        return f"{self.field_path}{separator}{self.reason}"


@dataclass(frozen=True)
class Findings:
    """Mistakes of one body: the first few, and the number of all."""

    first_findings: tuple[Finding, ...]
    number: int

    def __str__(self) -> str:
        more_note = f" (and {self.number - MOST_TOLD} more)" if self.number > MOST_TOLD else ""
        return "; ".join(map(str, self.first_findings)) + more_note


def find_mistakes(errors: Sequence[Mapping[str, Any]], body: Any, path: str) -> Findings:
    """One finding for each mistake, in the order of pydantic's errors, of which there is one at
    least. `path`: of the route.
    """
    step_lists = [_steps(error) for error in errors]
    kinds = {
        steps[:-1]
        for error, steps in zip(errors, step_lists, strict=True)
        if steps and steps[-1] in KIND_FIELDS and error["type"] != UNKNOWN
    }
    mistakes = [
        (error, steps)
        for error, steps in zip(errors, step_lists, strict=True)
        if not _is_of_unknown_kind(error, steps, kinds)
    ]
    first_mistakes = mistakes[:MOST_TOLD]
    findings = tuple(_finding(error, steps, body, path) for error, steps in first_mistakes)
    return Findings(findings, len(mistakes))


def clean(text: str) -> str:
    """The text without halves of surrogate pairs, which no answer can hold."""
    return text.encode("utf-8", "replace").decode()


def _is_of_unknown_kind(error: Mapping[str, Any], steps: Steps, kinds: Set[Steps]) -> bool:
    says_kind = error["type"] != UNKNOWN and steps[-1:] in KIND_ENDS
    longest = len(steps) - 1 if says_kind else len(steps)  # not the object whose kind it says
    return any(steps[:length] in kinds for length in range(longest))


def _steps(error: Mapping[str, Any]) -> Steps:
    location: Sequence[str | int] = error["loc"]
    start = 1 if location[:1] == ("body",) else 0
    return tuple(
        step
        for step in location[start:]
        if not (isinstance(step, str) and step.startswith(TAG_MARK))
    )


def _finding(error: Mapping[str, Any], steps: Steps, body: Any, path: str) -> Finding:
    kind, value = error["type"], error.get("input")
    if kind == "json_invalid":
        return Finding("", _json_mistake(error, body))
    if not steps:
        body_value = "nothing, or null" if kind == "missing" else show_value(value)
        return Finding(
            "",
            f"expected a JSON object such as {BODIES.get(path, '{...}')} as the body, got {body_value}",
        )
    field_path = cut(".".join(map(str, steps)), LONGEST_PLACE)
    if kind == UNKNOWN:
        return Finding(field_path, _unknown_field(str(steps[-1])))
    if kind == "unable":
        return Finding(field_path, error["msg"], "unsupported_parameter")
    shape = _shape(steps) or _kind_shape(error)
    if kind == "missing":
        return Finding(field_path, f"{MISSING}: expected {shape}" if _shape(steps) else MISSING)
    return Finding(
        field_path, f"expected {shape}, got {show_value(value)}{_note(steps[-1], value)}"
    )


def _note(name: str | int, value: object) -> str:
    if name == "role" and value in ("tool", "function"):
        return ": this server cannot call tools"
    if name == "matryoshka_vis_token_scale" and isinstance(value, list):
        return ": images with scales of their own take each its own, beside image_url"
    return ""


def _shape(steps: Steps) -> str | None:
    names = ["*" if isinstance(step, int) else step for step in steps]
    ends = (".".join(names[-length:]) for length in (3, 2, 1))
    return next((SHAPES[end] for end in ends if end in SHAPES), None)


def _kind_shape(error: Mapping[str, Any]) -> str:
    words = KINDS.get(error["type"])
    if words is None:
        return cut(str(error["msg"]).removeprefix("Input should be "), LONGEST_REASON)
    return words.format_map(error.get("ctx") or {})


def _unknown_field(name: str) -> str:
    names = _field_names()
    if name in names:
        return "this server does not know this field here"
    if name in HINTS:
        return f"this server does not know this field: {HINTS[name]}"
    near_names = difflib.get_close_matches(cut(name, LONGEST_VALUE), names, 1, NEAR)
    proposal = f"; did you mean {near_names[0]}?" if near_names else ""
    return f"this server does not know this field{proposal}"


def _field_names() -> set[str]:
    models, names = Strict.__subclasses__(), set[str]()
    for model in models:
        names.update(model.model_fields)
        models += [child for child in model.__subclasses__() if child not in models]
    return names


def _json_mistake(error: Mapping[str, Any], body: Any) -> str:
    """Python's reason, and the place of it as editors count."""
    reason = (error.get("ctx") or {}).get("error", "")
    position = error["loc"][-1]
    if not isinstance(body, str) or not isinstance(position, int):
        return f"the body is not JSON: {reason}"
    line_start = body.rfind("\n", 0, position) + 1
    line, column = body.count("\n", 0, position) + 1, position - line_start + 1
    return f"the body is not JSON at line {line}, column {column}: {reason}"


def show_value(value: object) -> str:
    """A value of JSON, shortened: it may be an image."""
    if isinstance(value, dict):
        keys = [cut(str(key), LONGEST_VALUE) for key, _ in zip(value, range(3), strict=False)]
        more_keys = ", ..." if len(value) > len(keys) else ""
        return f"an object with {', '.join(keys)}{more_keys}" if keys else "{}"
    if isinstance(value, list):
        return (
            cut(json.dumps(value), LONGEST_VALUE) if _is_short(value) else f"a list of {len(value)}"
        )
    if isinstance(value, str):
        return json.dumps(cut(value, LONGEST_VALUE), ensure_ascii=False)
    return cut(json.dumps(value), LONGEST_VALUE)


def _is_short(values: list[object]) -> bool:
    return len(values) <= 5 and all(
        item is None or isinstance(item, str | int | float) for item in values
    )


def cut(text: str, length: int) -> str:
    """The text's beginning."""
    return text if len(text) <= length else f"{text[:length]}..."
