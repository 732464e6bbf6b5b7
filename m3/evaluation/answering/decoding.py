"""Decoding of answers: the generation settings that tasks of the harness use, read strictly."""

import math
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from transformers import PreTrainedTokenizerBase

from m3.inference.generation import stop_sequences
from m3.nesting import SCALE_OPTION

ALIASES = {"max_gen_toks": "max_new_tokens"}
OTHER_MODELS = ("image_aspect_ratio", "interleaved_format")
"""Settings of shipped tasks that speak to the image tiling of other models; they change nothing
here.
"""


LEAST = {"max_new_tokens": 1, "num_beams": 1, "top_k": 0}
"""Settings that are whole numbers, and the smallest of each."""


def _whole(setting_name: str, setting_value: object, least: int) -> int:
    """A number of a task's YAML or of the command line, where it may be words."""
    whole_number = (
        int(setting_value)
        if isinstance(setting_value, str) and setting_value.strip().isdigit()
        else setting_value
    )
    if (
        isinstance(whole_number, bool)
        or not isinstance(whole_number, int | float)
        or not float(whole_number).is_integer()
        or whole_number < least
    ):
        raise ValueError(
            f"{setting_name}: expected a whole number from {least}, got {setting_value!r}; correct "
            "the task's generation_kwargs"
        )
    return int(whole_number)


def _real(
    setting_name: str, setting_value: object, least: float, most: float, expected: str
) -> float:
    """A finite number; `expected` says in words what `least` and `most` do."""
    try:
        real_number = (
            float(setting_value)
            if isinstance(setting_value, str | int | float) and not isinstance(setting_value, bool)
            else math.nan
        )
    except ValueError:
        real_number = math.nan
    if not (math.isfinite(real_number) and least <= real_number <= most):
        raise ValueError(
            f"{setting_name}: expected {expected}, got {setting_value!r}; correct the task's "
            "generation_kwargs"
        )
    return real_number


def _truth(setting_name: str, setting_value: object) -> bool:
    """A yes or no; the words of a command line too, of which each would count as a yes."""
    truth_word = str(setting_value).strip().lower()
    if truth_word not in ("true", "false", "1", "0"):
        raise ValueError(
            f"{setting_name}: expected true or false, got {setting_value!r}; correct the task's "
            "generation_kwargs"
        )
    return truth_word in ("true", "1")


REALS = (
    ("top_p", 0.0, 1.0, "a number from 0 to 1"),
    ("repetition_penalty", sys.float_info.min, math.inf, "a number above 0"),
)


def _known_settings(settings: Mapping[str, Any], known_names: set[str]) -> dict[str, Any]:
    """The settings that are given, by the names of `Decoding`.

    Raises:
        ValueError: two names of a setting that disagree, a setting that is not known.
    """
    doubled_names = [
        setting_name
        for setting_name, alias_name in ALIASES.items()
        if setting_name in settings and alias_name in settings
    ]
    if doubled_names and settings[doubled_names[0]] != settings[ALIASES[doubled_names[0]]]:
        raise ValueError(
            f"{doubled_names[0]} and {ALIASES[doubled_names[0]]} say different things; keep one "
            "in the task's generation_kwargs"
        )
    setting_values = {
        ALIASES.get(setting_name, setting_name): setting_value
        for setting_name, setting_value in settings.items()
    }
    unknown = sorted(set(setting_values) - known_names - {SCALE_OPTION, *OTHER_MODELS})
    if unknown:
        raise ValueError(
            f"unknown generation setting {', '.join(unknown)}; known: "
            f"{', '.join(sorted(known_names | {SCALE_OPTION}))}. Remove it from "
            "the task's generation_kwargs or from --gen_kwargs"
        )
    return {
        setting_name: setting_value
        for setting_name, setting_value in setting_values.items()
        if setting_name in known_names and setting_value is not None
    }


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
        setting_values = _known_settings(settings, {own_field.name for own_field in fields(cls)})
        until = setting_values.pop("until", ())
        until = (until,) if isinstance(until, str) else tuple(until)
        wrong = [stop_text for stop_text in until if not isinstance(stop_text, str)]
        if wrong:
            raise ValueError(
                f"until: expected texts, got {wrong[0]!r}; correct the task's generation_kwargs"
            )
        setting_values |= {
            setting_name: _whole(setting_name, setting_values[setting_name], least)
            for setting_name, least in LEAST.items()
            if setting_name in setting_values
        }
        given_sampling = (
            _truth("do_sample", setting_values.pop("do_sample"))
            if "do_sample" in setting_values
            else None
        )
        temperature = setting_values.pop("temperature", 1.0 if given_sampling else 0.0)
        temperature = _real("temperature", temperature, 0.0, math.inf, "a number from 0")
        sample = temperature > 0 if given_sampling is None else given_sampling and temperature > 0
        if not sample:  # one way to say greedy, whatever unused settings a task carries
            setting_values = {
                setting_name: setting_value
                for setting_name, setting_value in setting_values.items()
                if setting_name not in ("top_p", "top_k")
            }
        for setting_name, least, most, expected in REALS:
            if setting_name in setting_values:
                setting_values[setting_name] = _real(
                    setting_name, setting_values[setting_name], least, most, expected
                )
        return cls(
            do_sample=sample,
            temperature=temperature if sample else 1.0,
            until=until,
            **setting_values,
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
            tokenizer(stop_text, add_special_tokens=False)["input_ids"]
            for stop_text in self.until
            if stop_text
        ]
        return sorted({*ends, *(ids[0] for ids in encoded if len(ids) == 1)})

    def end(
        self, row: Sequence[int], tokenizer: PreTrainedTokenizerBase, stops: Collection[int]
    ) -> int:
        """Place of the first token behind the answer: a stop, or the first of an `until` that
        decoding would leave out.
        """
        sequences = [[stop] for stop in stops] + stop_sequences(tokenizer, filter(None, self.until))
        end_places = (
            n
            for n in range(len(row))
            if any(list(row[n : n + len(ids)]) == ids for ids in sequences)
        )
        return next(end_places, len(row))

    def cut(self, text: str) -> str:
        """The text before the first `until`."""
        for stop in self.until:
            if stop:
                text = text.split(stop, 1)[0]
        return text.strip()
