"""The rows of `m3 sweep --methods`: the name of each way to reduce tokens, what it does and its source.

A file of its own, without torch, since a command line is read by it; what a method does with tokens
is in table.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from m3.config import near_match

OWN = "nesting"
"""The model's own nesting, whatever its weights were trained for."""
RESOLUTION, FASTV = "resolution", "fastv"


@dataclass(frozen=True)
class Method:
    """A row of the table."""

    about: str
    source: str


M3_PAPER = "Matryoshka Multimodal Models, https://arxiv.org/abs/2405.17430"
METHODS: Mapping[str, Method] = {
    OWN: Method("the model's own nesting", M3_PAPER),
    "pooling": Method("plain average pooling on the grid", f"{M3_PAPER}, table 4, average pooling"),
    "uniform": Method("the middle token of each cell", f"{M3_PAPER}, table 4, spatial sampling"),
    "random": Method(
        "random tokens, seed 0", "a control; https://arxiv.org/abs/2502.11501 shows how strong"
    ),
    "random_1": Method(
        "random tokens, seed 1",
        "as random (https://arxiv.org/abs/2502.11501); another draw, to see the spread",
    ),
    RESOLUTION: Method(
        "the tower sees an image of so few pixels that it has m patches",
        "a control; its position embeddings are interpolated as in "
        "https://arxiv.org/abs/2010.11929, section 3.2",
    ),
    "divprune": Method("the most diverse tokens", "DivPrune, https://arxiv.org/abs/2503.02175"),
    "coverage": Method(
        "the tokens that cover all others best",
        "MMTok, https://arxiv.org/abs/2508.18264; its vision term alone, without the coverage of "
        "the question's words",
    ),
    FASTV: Method(
        "all tokens in the decoder's first 2 layers, then those that the last word looks at most",
        "FastV, https://arxiv.org/abs/2403.06764",
    ),
}


def get_method(method_name: str) -> Method:
    """The row called `name`; a `ValueError` gives the near match."""
    if method_name not in METHODS:
        raise ValueError(f"no method {method_name!r}. {near_match(method_name, METHODS)}")
    return METHODS[method_name]


def stored_name(method: str, nesting: str) -> str:
    """Name that answers are stored under: the kind of nesting for the model's own."""
    return nesting if method == OWN else method


def is_own(method: str, nesting: str) -> bool:
    """Tell whether a method is what the model does anyway: plain pooling of a model that nests by
    pooling.
    """
    return method == OWN or (method == "pooling" and nesting == "grid_pool")
