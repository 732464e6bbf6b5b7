"""Kinds of fields that several requests have: strict models, texts, scales.

In: JSON of a client. Out: pydantic's types for it, which refuse what they do not know.
"""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError


def _one_scale(given_scale: object) -> object:
    if type(given_scale) not in (int, str):
        raise PydanticCustomError(
            "scale", "expected one whole number, or words such as 36@48, 144+1 or auto; images "
                     "with scales of their own take each its own, "
            "beside image_url"
        )  # fmt: skip
    return given_scale


Scale = Annotated[
    Annotated[int, Field(ge=1, le=1_000_000)]
    | Annotated[str, Field(max_length=200, pattern=r"^ *auto(:(rule|[0-9.]+))? *$|^[0-9x+@ ]+$")],
    BeforeValidator(_one_scale),
]
"""Visual tokens per picture (`36`), tokens at a resolution in pixels (`36@48`), a schedule over the
frames of videos such as `144+1@48`, or a choice per picture: the model's (`auto`, `auto:0.95`) or by
its size (`auto:rule`).
"""
ZERO = Annotated[float, Field(ge=0, le=0)]
Text = Annotated[str, Field(max_length=10_000_000)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
