"""How an answer is decoded: the generation settings that tasks of the harness use, read
strictly.
"""

import math
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from transformers import PreTrainedTokenizerBase

from m3.inference.generation import stop_sequences

SCALE = "matryoshka_vis_token_scale"
ALIASES = {"max_gen_toks": "max_new_tokens"}
OTHER_MODELS = ("image_aspect_ratio", "interleaved_format")
"""Settings of shipped tasks that speak to the image tiling of other models; they change nothing
here.
"""


LEAST = {"max_new_tokens": 1, "num_beams": 1, "top_k": 0}
"""Settings that are whole numbers, and the smallest of each."""


def _whole(name: str, value: object, least: int) -> int:
    """A number of a task's YAML or of the command line, where it may be words."""
    number = int(value) if isinstance(value, str) and value.strip().isdigit() else value
    if (
        isinstance(number, bool)
        or not isinstance(number, int | float)
        or not float(number).is_integer()
        or number < least
    ):
        raise ValueError(
            f"{name}: expected a whole number from {least}, got {value!r}; correct the task's "
            "generation_kwargs"
        )
    return int(number)


def _real(name: str, value: object, least: float, most: float, expected: str) -> float:
    """A finite number; `expected` says in words what `least` and `most` do."""
    try:
        number = (
            float(value)
            if isinstance(value, str | int | float) and not isinstance(value, bool)
            else math.nan
        )
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and least <= number <= most):
        raise ValueError(
            f"{name}: expected {expected}, got {value!r}; correct the task's generation_kwargs"
        )
    return number


def _truth(name: str, value: object) -> bool:
    """A yes or no; the words of a command line too, of which each would count as a yes."""
    word = str(value).strip().lower()
    if word not in ("true", "false", "1", "0"):
        raise ValueError(
            f"{name}: expected true or false, got {value!r}; correct the task's generation_kwargs"
        )
    return word in ("true", "1")


REALS = (
    ("top_p", 0.0, 1.0, "a number from 0 to 1"),
    ("repetition_penalty", sys.float_info.min, math.inf, "a number above 0"),
)


@dataclass(frozen=True)
class Decoding:
    """Greedy unless `do_sample` is set or, where it is not given, the temperature is above zero."""

    max_new_tokens: int = 1024
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 50
    num_beams: int = 1
    repetition_penalty: float = 1.0
    until: tuple[str, ...] = ()

    @classmethod
    def from_task(cls, settings: Mapping[str, Any]) -> "Decoding":
        """From a task's `generation_kwargs`, which may also hold the scale.

        Raises:
            ValueError: a setting that is not known; ignoring it would change what the benchmark
                measures.
        """
        twice = [name for name, other in ALIASES.items() if name in settings and other in settings]
        if twice and settings[twice[0]] != settings[ALIASES[twice[0]]]:
            raise ValueError(
                f"{twice[0]} and {ALIASES[twice[0]]} say different things; keep one in the task's "
                "generation_kwargs"
            )
        values = {ALIASES.get(name, name): value for name, value in settings.items()}
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known - {SCALE, *OTHER_MODELS})
        if unknown:
            raise ValueError(
                f"unknown generation setting {', '.join(unknown)}; known: "
                f"{', '.join(sorted(known | {SCALE}))}. Remove it from "
                "the task's generation_kwargs or from --gen_kwargs"
            )
        values = {
            name: value for name, value in values.items() if name in known and value is not None
        }
        until = values.pop("until", ())
        until = (until,) if isinstance(until, str) else tuple(until)
        wrong = [text for text in until if not isinstance(text, str)]
        if wrong:
            raise ValueError(
                f"until: expected texts, got {wrong[0]!r}; correct the task's generation_kwargs"
            )
        values |= {
            name: _whole(name, values[name], least)
            for name, least in LEAST.items()
            if name in values
        }
        given = _truth("do_sample", values.pop("do_sample")) if "do_sample" in values else None
        temperature = values.pop("temperature", 1.0 if given else 0.0)
        temperature = _real("temperature", temperature, 0.0, math.inf, "a number from 0")
        sample = temperature > 0 if given is None else given and temperature > 0
        if not sample:  # one way to say greedy, whatever unused settings a task carries
            values = {
                name: value for name, value in values.items() if name not in ("top_p", "top_k")
            }
        for name, least, most, expected in REALS:
            if name in values:
                values[name] = _real(name, values[name], least, most, expected)
        return cls(
            do_sample=sample, temperature=temperature if sample else 1.0, until=until, **values
        )

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `generate`."""
        sampling = (
            {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
            if self.do_sample
            else {}
        )
        return {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": self.do_sample,
            "num_beams": self.num_beams,
            "repetition_penalty": self.repetition_penalty,
            **sampling,
        }

    def stop_ids(self, tokenizer: PreTrainedTokenizerBase, ends: Iterable[int]) -> list[int]:
        """The ends of an answer, and every `until` that is one token.

        A longer `until` does not stop the generation; `cut` removes what comes after it.
        """
        encoded = [
            tokenizer(text, add_special_tokens=False)["input_ids"] for text in self.until if text
        ]
        return sorted({*ends, *(ids[0] for ids in encoded if len(ids) == 1)})

    def end(
        self, row: Sequence[int], tokenizer: PreTrainedTokenizerBase, stops: Collection[int]
    ) -> int:
        """Place of the first token behind the answer: a stop, or the first of an `until` that
        decoding would leave out.
        """
        sequences = [[stop] for stop in stops] + stop_sequences(tokenizer, filter(None, self.until))
        places = (
            n
            for n in range(len(row))
            if any(list(row[n : n + len(ids)]) == ids for ids in sequences)
        )
        return next(places, len(row))

    def cut(self, text: str) -> str:
        """The text before the first `until`."""
        for stop in self.until:
            if stop:
                text = text.split(stop, 1)[0]
        return text.strip()
