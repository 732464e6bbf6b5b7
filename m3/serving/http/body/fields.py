"""Kinds of fields of a request's body: what is strict, what is ignored, what has a neutral value.

In: JSON as clients write it, where null means "not said" at every depth. Out: values of pydantic
models, or findings that m3/serving/http/body/findings.py puts into words. Apart from the schema so that
each kind is described once, however many routes use it.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

TAG_MARK = "\0"
"""Begins the name of an alternative, which pydantic puts among the steps to a mistake though it is
no step of the body.
"""
SCALE_WORDS = re.compile(r" *auto(:(rule|[0-9.]+))? *|[0-9x+@ ]+")
MOST_TOKENS = 1_000_000
LONGEST_SCALE = 200


class Strict(BaseModel):
    """A JSON object whose fields are all known; one that is null was not said."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def drop_nulls(cls, content: Any) -> Any:
        """The object without its fields that are null."""
        if not isinstance(content, dict):
            return content
        return {key: value for key, value in content.items() if value is not None}


class SamplingFields(Strict):
    """What every route that writes answers takes alike."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        None, description="default 0: greedy"
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None


def read_scale(setting: object) -> int | str:
    """A number of visual tokens or words for a budget; JSON has no whole numbers, so 9.0 is 9."""
    if isinstance(setting, float) and setting.is_integer():
        setting = int(setting)
    if type(setting) is int and 1 <= setting <= MOST_TOKENS:
        return setting
    if (
        isinstance(setting, str)
        and len(setting) <= LONGEST_SCALE
        and SCALE_WORDS.fullmatch(setting)
    ):
        return setting
    raise PydanticCustomError("shape", "not a scale")


Scale = Annotated[
    int | str,
    PlainValidator(read_scale),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": MOST_TOKENS},
                {
                    "type": "string",
                    "maxLength": LONGEST_SCALE,
                    "pattern": r"^ *auto(:(rule|[0-9.]+))? *$|^[0-9x+@ ]+$",
                },
            ]
        }
    ),
]
"""Visual tokens per picture (`36`), tokens at a resolution in pixels (`36@48`), a schedule over the
frames of videos such as `144+1@48`, or a choice per picture: the model's (`auto`, `auto:0.95`) or by
its size (`auto:rule`).
"""
Text = Annotated[str, Field(max_length=10_000_000)]
Ignored = Annotated[object, Field(description="ignored")]
"""Taken whatever it holds, as it changes nothing here."""


@dataclass(frozen=True, eq=False)  # else `typing` takes False for 0 in what it keeps of Annotated
class Neutral:
    """A field that asks for what this server cannot do, unless it has one of its neutral `values`.

    `refusal` is told of every other value. Read as None.
    """

    refusal: str
    values: tuple[object, ...] = ()

    def check(self, value: object) -> None:
        """Refuse what is not neutral; 1.0 is 1, and true is not 1."""
        for neutral_value in self.values:
            if value == neutral_value and isinstance(value, bool) == isinstance(
                neutral_value, bool
            ):
                return
        raise PydanticCustomError("unable", "{refusal}", {"refusal": self.refusal})

    def __get_pydantic_core_schema__(self, _: Any, __: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(
        self, _: CoreSchema, __: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"enum": [None, *self.values], "description": f"else: {self.refusal}"}


def text_or_list() -> Discriminator:
    """Between alternatives tagged `TEXT` and `LIST`; what is neither is read as a text."""
    return Discriminator(lambda value: LIST if isinstance(value, list) else TEXT)


def by_field(field: str, default: str, *tagged_names: str, **synonyms: str) -> Discriminator:
    """Between objects by the text in one of their fields, tagged with `tag(text)`.

    What has another text is read as the default: then the mistake is found in that field.
    """
    tags = {name: tag(name) for name in tagged_names} | {
        synonym: tag(name) for synonym, name in synonyms.items()
    }

    def choose(value: object) -> str:
        name = value.get(field) if isinstance(value, dict) else None
        return tags.get(name, tag(default)) if isinstance(name, str) else tag(default)

    return Discriminator(choose)


def tag(name: str) -> str:
    """The name of an alternative, told from steps of the body by its mark."""
    return TAG_MARK + name


TEXT, LIST = tag("text"), tag("list")
