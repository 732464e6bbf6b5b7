"""A request to what the model takes, on a thread beside the model's: all checks are done here, so
that nothing fails later.

In: `Request`. Out: `Prepared`: ids with every placeholder in place, a budget per picture, and each
picture at the resolution of its budget: as features that were kept or as pixels to be seen.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jinja2.exceptions import TemplateError

from m3.inference.generation import answer_room
from m3.inference.image_features import TowerBatch, View, check_resolutions, tower_batches
from m3.model import M3ForConditionalGeneration
from m3.nesting import Budget
from m3.processing import ImageSource, M3Processor, expand_image_tokens
from m3.processing.control_tokens import control_tokens, encode_fenced, fence
from m3.processing.images import TooLargeError
from m3.processing.scale_policy import ScaleSetting
from m3.processing.token_counts import budget_resolutions
from m3.processing.video import load_video
from m3.serving.engine.feature_cache import Features, Sight
from m3.serving.engine.requests import Refused, Request, Visual
from m3.serving.settings import Limits

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A prompt.

    `counts`: visual tokens of each still or frame, in reading order.
    """

    ids: list[int]
    sights: tuple[Sight, ...]
    counts: list[int]
    new_tokens: int

    @property
    def budgets(self) -> list[Budget]:
        """Budget of each still or frame, in reading order."""
        return [budget for sight in self.sights for budget in sight.budgets]


class Preparation:
    """Holds what is needed of model and processor; knows no request."""

    def __init__(
        self,
        model: M3ForConditionalGeneration,
        processor: M3Processor,
        features: Features,
        limits: Limits,
    ) -> None:
        self._processor, self._features, self._limits = processor, features, limits
        self._control_tokens = control_tokens(processor)
        self._config = model.config

    def prepare(self, request: Request) -> Prepared:
        """Errors are `Refused`, or a `ValueError` of the processor's; all are the client's
        mistakes.
        """
        self._check(request)
        visuals = [
            visual_part
            for turn in request.turns
            for visual_part in turn.parts
            if isinstance(visual_part, Visual)
        ]
        sights = tuple(
            self._sight(visual, request.scale if visual.scale is None else visual.scale)
            for visual in visuals
        )
        token_counts = [
            count
            for sight in sights
            for count in self._processor.counts(sight.budgets, sight.tiles)
        ]
        ids, new_tokens = self._ids(request, sights, token_counts)
        return Prepared(ids, sights, token_counts, new_tokens)

    def _check(self, request: Request) -> None:
        limits = self._limits
        visuals = [
            visual_part
            for turn in request.turns
            for visual_part in turn.parts
            if isinstance(visual_part, Visual)
        ]
        text_length = sum(
            len(text_part)
            for turn in request.turns
            for text_part in turn.parts
            if isinstance(text_part, str)
        )
        counted = (
            ("messages", len(request.turns), limits.turns),
            ("images", sum(visual.kind == "image" for visual in visuals), limits.images),
            ("videos", sum(visual.kind == "video" for visual in visuals), limits.videos),
            ("characters of text", text_length, limits.characters),
            ("new tokens", request.generation.max_new_tokens, limits.new_tokens),
            ("bytes in an image", _largest(visuals, "image"), limits.image_bytes),
            ("bytes in a video", _largest(visuals, "video"), limits.video_bytes),
        )
        for limit_name, count, limit in counted:
            if count > limit:
                raise Refused(
                    f"the request has {count:,} {limit_name}, more than this server's limit of "
                    f"{limit:,}"
                )

    def _sight(self, visual: Visual, scale: ScaleSetting | None) -> Sight:
        """The setting becomes budgets first: they say at which resolution pictures are made.

        A video that was not kept is decoded before that, as its frames must be counted.
        """
        digest, processor = visual.digest, self._processor
        kept_views = self._features.find(digest)
        pictures = self._pictures(visual) if not kept_views else ()
        picture_count = len(pictures) or len({number for number, _ in kept_views})
        asked_budgets = processor.policy_budgets(scale, [None] * picture_count)
        check_resolutions(self._config, asked_budgets)
        views = tuple(enumerate(budget_resolutions(asked_budgets)))
        new_views = [view for view in views if view not in kept_views]
        batches: tuple[TowerBatch, ...] = ()
        if new_views:
            batches = self._batches(visual, pictures or self._pictures(visual), new_views)
        view_tiles = {view: picture.tiles for view, picture in kept_views.items()} | {
            view: tiles
            for batch in batches
            for view, tiles in zip(batch.views, batch.tiled_images.images, strict=True)
        }
        tiles = tuple(view_tiles[view] for view in views)
        budgets = tuple(processor.fill_budgets(asked_budgets, tiles))
        return Sight(digest, views, budgets, tiles, kept_views, batches)

    def _pictures(self, visual: Visual) -> Sequence[ImageSource]:
        """A still, not decoded yet, or the frames of a video."""
        if visual.kind == "image":
            return [visual.content]
        limits = self._limits
        return load_video(
            visual.content,
            visual.sampling,
            limits.pixels,
            limits.video_seconds,
            limits.frames,
            limits.video_pixels,
            limits.decode_seconds,
        ).frames

    def _batches(
        self, visual: Visual, pictures: Sequence[ImageSource], views: Sequence[View]
    ) -> tuple[TowerBatch, ...]:
        """The sender can make a still smaller, only the operator can raise the limit."""
        limits = self._limits
        if visual.kind == "video":
            return tuple(tower_batches(self._processor, pictures, views, limits.video_pixels))
        try:
            return tuple(tower_batches(self._processor, pictures, views, limits.pixels))
        except TooLargeError as error:
            logger.info("refused, for limits.pixels: %s", error.finding)
            raise Refused(f"{error.finding}: send a smaller copy of the picture") from error

    def _ids(
        self, request: Request, sights: Iterable[Sight], counts: list[int]
    ) -> tuple[list[int], int]:
        """The prompt, and how many tokens its answer may have.

        Visuals stand on lines of their own, as in `m3 chat`; text is plain text whatever it says.
        """
        image, queue = self._processor.image_token, iter(sights)
        chat_messages = []
        for turn in request.turns:
            message_lines = [
                image * len(next(queue).views)
                if isinstance(turn_part, Visual)
                else fence(turn_part, self._control_tokens)
                for turn_part in turn.parts
            ]
            chat_messages.append({"role": turn.role, "content": "\n".join(message_lines)})
        try:
            prompt_text = self._processor.apply_chat_template(
                chat_messages, tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise Refused(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error
        tokenizer = self._processor.tokenizer
        ids = encode_fenced(tokenizer, prompt_text)
        prompt_length, limit = len(ids) + sum(counts) - len(counts), self._limits.prompt_tokens
        try:
            asked_tokens = request.generation.max_new_tokens
            new_tokens = answer_room(
                prompt_length,
                sum(counts),
                len(counts),
                self._config.text_config.max_position_embeddings,
                asked_tokens,
            )
            if prompt_length > limit:
                visual = f", {sum(counts):,} of them visual" if counts else ""
                raise ValueError(
                    f"the prompt has {prompt_length:,} tokens{visual}, more than this server's "
                    f"limit of {limit:,}"
                )
        except ValueError as error:
            raise Refused(str(error), code="context_length_exceeded", param="messages") from error
        return expand_image_tokens(ids, self._config.image_token_id, counts), new_tokens


def _largest(visuals: Iterable[Visual], kind: str) -> int:
    return max((len(visual.content) for visual in visuals if visual.kind == kind), default=0)
