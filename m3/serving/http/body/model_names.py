"""A request's `model`: the name of a model that is here, and perhaps a budget behind it.

In: `m3-tiny`, `m3-tiny@9`, `m3-tiny@36@48`, `m3-tiny@auto`, for clients that cannot say
`matryoshka_vis_token_scale`. Out: the name and the budget. Apart from the routes because the router
in front of several models reads names too.
"""

from collections.abc import Collection
from dataclasses import dataclass

from m3.processing.scale_policy import read_policy
from m3.serving.engine.requests import Refused
from m3.serving.http.body.fields import LONGEST_SCALE

LONGEST_NAME = 100
"""Characters of a wrong name that are told."""


@dataclass(frozen=True)
class AskedModel:
    """`scale`: the words behind the name; None where there are none."""

    name: str
    scale: str | None = None


def read_model(asked_name: str, names: Collection[str]) -> AskedModel:
    """The model of `names` that is asked for; a name may hold `@` itself.

    Raises:
        Refused: there is no such model.
    """
    if asked_name in names:
        return AskedModel(asked_name)
    for name in sorted(names, key=len, reverse=True):
        scale = asked_name.removeprefix(f"{name}@")
        if scale != asked_name and _is_scale(scale):
            return AskedModel(name, scale)
    raise Refused(
        f"there is no model {asked_name[:LONGEST_NAME]!r} here; this server has "
        f"{', '.join(map(repr, names))}",
        status=404,
        code="model_not_found",
        param="model",
    )


def _is_scale(words: str) -> bool:
    if len(words) > LONGEST_SCALE:
        return False
    try:
        read_policy(words)
    except ValueError:
        return False
    return True
