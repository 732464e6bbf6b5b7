"""Input and output of the answering engine: pictures, questions, views of pictures, replies.

No model here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from m3.digest import digest
from m3.evaluation.answering.decoding import Decoding
from m3.evaluation.token_reduction.methods import OWN, RESOLUTION
from m3.evaluation.token_reduction.table import CHOICES
from m3.nesting import BUDGET, Budget, read_budget
from m3.processing.images import load_image


@dataclass(frozen=True)
class Picture:
    """An image and the digest of its pixels."""

    image: Image.Image
    digest: str

    @classmethod
    def of(cls, source: str | Path | bytes | Image.Image) -> "Picture":
        image = load_image(source)
        return cls(image, digest(f"{image.mode}{image.size}".encode() + image.tobytes()))


@dataclass(frozen=True)
class Question:
    text: str  # after the chat template; one image token per picture
    pictures: tuple[Picture, ...]
    # budget of the pictures: visual tokens per tile (36), "36@48", budgets of several pictures with
    # commas; or a choice that the engine has yet to make ("auto", "144+1")
    scale: int | str
    decoding: Decoding
    continuation: str | None = None  # score this instead of generating
    # how the visual tokens are chosen: a row of m3.evaluation.token_reduction.table
    method: str = OWN
    is_routed: bool = False  # whether to record the experts that its tokens choose (routing.py)

    def at(self, scale: int | str, method: str = OWN, is_routed: bool = False) -> "Question":
        return replace(self, scale=scale, method=method, is_routed=is_routed)

    @property
    def is_settled(self) -> bool:
        """Tell whether the budget of each picture is known."""
        return all(BUDGET.fullmatch(word) for word in str(self.scale).split(","))

    @property
    def budgets(self) -> list[Budget]:
        """The budget of each picture of a settled question."""
        listed = [read_budget(word) for word in str(self.scale).split(",")]
        return listed * len(self.pictures) if len(listed) == 1 else listed

    @property
    def is_chosen(self) -> bool:
        """Tell whether the method has chosen the tokens before the model's reducer sees them."""
        return self.method in CHOICES or self.method == RESOLUTION

    @property
    def views(self) -> list["View"]:
        """The view of each picture that the decoder reads."""
        if self.is_chosen:
            tokens = read_budget(self.scale).tokens
            return [View(picture, self.method, tokens) for picture in self.pictures]
        return [
            View(picture, resolution=budget.resolution)
            for picture, budget in zip(self.pictures, self.budgets, strict=True)
        ]


def joined_setting(budgets: Sequence[Budget]) -> int | str:
    """The scale of a question whose pictures have these budgets, at least one."""
    settings = list(dict.fromkeys(budget.setting for budget in budgets))
    return settings[0] if len(settings) == 1 else ",".join(map(str, budgets))


@dataclass(frozen=True)
class View:
    """A picture's tokens as a method chooses them for a scale; all of them (`OWN`, 0) where the
    model nests them, seen at a resolution in pixels (None: the largest).
    """

    picture: Picture
    method: str = OWN
    scale: int = 0
    resolution: int | None = None

    @property
    def whole(self) -> "View":
        """All tokens of the picture at the view's resolution."""
        return View(self.picture, resolution=self.resolution)

    @property
    def key(self) -> str:
        """Name of its features in the cache: what was seen, and what was chosen of it."""
        digest, side = self.picture.digest, self.resolution
        seen_as = digest if side is None else f"{digest}@{side}"
        return seen_as if self.method == OWN else f"{seen_as} {self.method} {self.scale}"


@dataclass(frozen=True)
class Reply:
    text: str  # generated, cut at the first `until`; "" when a continuation was scored
    # sum of the continuation's log-probabilities, and whether it is greedy
    log_likelihood: tuple[float, bool] | None
    visual_tokens: int
    text_tokens: int
    answer_tokens: int
    seconds: float  # wall clock time of the batch / its rows, without seeing the images
    # of a generated answer, in [0, 1] (confidence.py); None: scored, or by beams
    confidence: float | None = None
    # of a recorded prompt (routing.py); None: not asked for, or a dense decoder
    routing: str | None = None
