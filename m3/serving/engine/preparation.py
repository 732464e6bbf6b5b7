"""A request to what the model takes, on a thread beside the model's: all checks are done here, so
that nothing fails later.

In: `Request`. Out: `Prepared`: ids with every placeholder in place, a budget per picture, and each
picture at the resolution of its budget: as features that were kept or as pixels to be seen.

Where the model's router is to choose a budget (`auto`) the first result is a `Draft`, with the
cheapest view of each picture in place of that: the model's thread sees it and asks the router
(m3/serving/engine/scheduler.py), and `finish` makes `Prepared` of what it chose. Limits are those of the
budgets that were chosen.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from jinja2.exceptions import TemplateError

from m3.inference.budget_choice import check_views, checked_choice
from m3.inference.generation import answer_room, end_token_ids
from m3.inference.image_features import TowerBatch, View, check_resolutions, tower_batches
from m3.model import M3ForConditionalGeneration
from m3.nesting import Budget
from m3.processing import ImageSource, M3Processor, expand_image_tokens
from m3.processing.control_tokens import control_tokens, encode_fenced, fence
from m3.processing.images import TooLargeError, image_size
from m3.processing.scale_policy import Auto, Rule, ScaleSetting, read_policy
from m3.processing.token_counts import budget_resolutions
from m3.processing.video import Video, load_video
from m3.serving.engine.feature_cache import Features, Sight, Views
from m3.serving.engine.grammar import Grammars, Guide
from m3.serving.engine.requests import Refused, Request, Visual
from m3.serving.engine.vocabulary import Vocabulary
from m3.serving.settings import Limits

logger = logging.getLogger(__name__)

NO_CHOICE = "this model has no router to choose budgets: give a number of visual tokens such as 36"
LOW_SHARE = 16
"""Detail `low` reads at least one of so many tokens of the largest budget, as OpenAI's does."""
AskedBudgets = tuple[Budget | None, ...]
"""Of each still or frame of a visual; None: the largest trained that its tiles reach."""


@dataclass(frozen=True)
class Draft:
    """A prompt before its pictures take their places.

    `ids`: with one placeholder for each still or frame. `settings`: of each visual its budgets, or
    the policy by which the model's router is to choose them; `sights`: each visual at those
    budgets, or at the view that the router looks at.
    """

    ids: list[int]
    settings: tuple[AskedBudgets | Auto, ...]
    sights: tuple[Sight, ...]

    @property
    def is_open(self) -> bool:
        """The router has yet to choose."""
        return any(isinstance(setting, Auto) for setting in self.settings)

    @property
    def unseen(self) -> int:
        """Stills and frames that the tower has to see before the router can choose."""
        return sum(
            len(batch.views)
            for setting, sight in zip(self.settings, self.sights, strict=True)
            if isinstance(setting, Auto)
            for batch in sight.batches
        )


@dataclass(frozen=True)
class Prepared:
    """A prompt.

    `budgets`, `counts`: budget and visual tokens of each still or frame, in reading order. `guides`:
    of the form of each answer, where the request asks for one.
    """

    ids: list[int]
    sights: tuple[Sight, ...]
    budgets: list[Budget]
    counts: list[int]
    new_tokens: int
    guides: tuple[Guide, ...] = ()


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
        tokenizer = processor.tokenizer
        self.vocabulary = Vocabulary(
            tokenizer, model.config.text_config.vocab_size, end_token_ids(model, tokenizer)
        )
        self._grammars = Grammars(self.vocabulary)
        self._low_budget = _low_budget(processor.ladder)

    def prepare(self, request: Request) -> Prepared | Draft:
        """A draft where the model's router is to choose.

        Errors are `Refused`, or a `ValueError` of the processor's; all are the client's mistakes.
        """
        self._check(request)
        self._guides(request)  # a form that cannot be followed is refused before anything is seen
        outlines = [
            self._outline(visual, *self._scale(request, visual)) for visual in request.visuals
        ]
        settings = tuple(setting for setting, _ in outlines)
        sights = tuple(sight for _, sight in outlines)
        draft = Draft(self._ids(request, sights), settings, sights)
        return draft if draft.is_open else self.finish(request, draft)

    def finish(self, request: Request, draft: Draft) -> Prepared:
        """The prompt of a draft whose budgets are all there. Errors as in `prepare`."""
        processor, sights, budgets, counts = self._processor, [], [], []
        for visual, setting, first_sight in zip(
            request.visuals, draft.settings, draft.sights, strict=True
        ):
            assert not isinstance(setting, Auto)  # `Draft.is_open`
            with _at(self._scale(request, visual)[1]):
                asked_budgets = [None if b is None else processor.budget(b) for b in setting]
                sight = self._sight_at(visual, asked_budgets, first_sight)
                sight_budgets = processor.fill_budgets(asked_budgets, sight.tiles)
                counts += processor.counts(sight_budgets, sight.tiles)
            sights.append(sight)
            budgets += sight_budgets
        new_tokens = self._answer_room(request, draft.ids, counts)
        ids = expand_image_tokens(draft.ids, self._config.image_token_id, counts)
        guides = self._guides(request)
        return Prepared(ids, tuple(sights), budgets, counts, new_tokens, guides)

    def _guides(self, request: Request) -> tuple[Guide, ...]:
        if request.answer_format is None:
            return ()
        return self._grammars.guides(request.answer_format, request.choice_count)

    def _check(self, request: Request) -> None:
        limits, visuals = self._limits, request.visuals
        text_length = sum(
            len(text_part)
            for turn in request.turns
            for text_part in turn.parts
            if isinstance(text_part, str)
        ) + len(request.prompt or "")
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
                    f"{limit:,}",
                    param=request.field_path,
                )

    def _scale(self, request: Request, visual: Visual) -> tuple[ScaleSetting | None, str]:
        """The setting of a visual, and its place in the client's request."""
        if visual.scale is not None:
            return visual.scale, f"{visual.field_path}.matryoshka_vis_token_scale"
        if request.scale is None and visual.detail == "low":
            return self._low_budget, visual.field_path
        return request.scale, request.scale_place

    def _outline(
        self, visual: Visual, scale: ScaleSetting | None, scale_place: str
    ) -> tuple[AskedBudgets | Auto, Sight]:
        """The setting becomes budgets first: they say at which resolution pictures are made.

        A video that was not kept is decoded before that, as its frames must be counted; and where
        a rule goes by their size.
        """
        with _at(scale_place):
            policy = None if scale is None else read_policy(scale)
            if isinstance(policy, Auto) and self._config.budget_choice is None:
                raise ValueError(NO_CHOICE)
            choice = checked_choice(self._config, policy) if isinstance(policy, Auto) else None
        digest, is_by_size = visual.digest, isinstance(policy, Rule)
        kept_views = self._features.find(digest)
        pictures = self._pictures(visual) if is_by_size or not kept_views else ()
        picture_count = len(pictures) or len({number for number, _ in kept_views})
        if choice is not None and isinstance(policy, Auto):
            views = tuple(enumerate([choice.view] * picture_count))
            sight = self._sight(visual, digest, views, kept_views, pictures)
            with _at(scale_place):
                check_views(sight.tiles)
            return policy, sight
        sizes = self._sizes(visual, pictures) if is_by_size else [None] * picture_count
        with _at(scale_place):
            asked_budgets = tuple(self._processor.policy_budgets(scale, sizes))
            check_resolutions(self._config, asked_budgets)
        views = tuple(enumerate(budget_resolutions(asked_budgets)))
        return asked_budgets, self._sight(visual, digest, views, kept_views, pictures)

    def _sight_at(self, visual: Visual, budgets: Sequence[Budget | None], sight: Sight) -> Sight:
        """The sight itself, unless the budgets see the visual at other resolutions."""
        check_resolutions(self._config, budgets)
        views = tuple(enumerate(budget_resolutions(budgets)))
        if views == sight.views:
            return sight
        kept_views = {**self._features.find(sight.digest), **sight.kept}
        return self._sight(visual, sight.digest, views, kept_views, ())

    def _sight(
        self,
        visual: Visual,
        digest: str,
        views: tuple[View, ...],
        kept_views: Views,
        pictures: Sequence[ImageSource],
    ) -> Sight:
        """`pictures`: those of the visual, or none; then they are read where they are needed."""
        new_views = [view for view in views if view not in kept_views]
        batches: tuple[TowerBatch, ...] = ()
        if new_views:
            batches = self._batches(visual, pictures or self._pictures(visual), new_views)
        view_tiles = {view: picture.tiles for view, picture in kept_views.items()} | {
            view: tiles
            for batch in batches
            for view, tiles in zip(batch.views, batch.tiled_images.images, strict=True)
        }
        return Sight(digest, views, tuple(view_tiles[view] for view in views), kept_views, batches)

    def _pictures(self, visual: Visual) -> Sequence[ImageSource]:
        """A still, not decoded yet, or the frames of a video."""
        if visual.kind == "image":
            return [visual.content]
        with _at(visual.field_path):
            return read_video(visual, self._limits).frames

    def _sizes(
        self, visual: Visual, pictures: Sequence[ImageSource]
    ) -> list[tuple[int, int] | None]:
        """(height, width) of each; of a still its header alone is read."""
        with _at(visual.field_path):
            return [image_size(picture, self._limits.pixels) for picture in pictures]

    def _batches(
        self, visual: Visual, pictures: Sequence[ImageSource], views: Sequence[View]
    ) -> tuple[TowerBatch, ...]:
        limits = self._limits
        most_pixels = limits.video_pixels if visual.kind == "video" else limits.pixels
        with _at(visual.field_path):
            return tuple(tower_batches(self._processor, pictures, views, most_pixels))

    def _ids(self, request: Request, sights: Iterable[Sight]) -> list[int]:
        """The prompt, with one placeholder per picture.

        Visuals stand on lines of their own, as in `m3 chat`; text is plain text whatever it says.
        """
        if request.prompt is not None:
            return self._plain_ids(request.prompt)
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
                chat_messages,
                tokenize=False,
                add_generation_prompt=request.ending == "answer",
                continue_final_message=request.ending == "continued",
            )
        except TemplateError as error:
            raise Refused(
                f"the model's chat template refuses these messages: {error}",
                param=request.field_path,
            ) from error
        return encode_fenced(self._processor.tokenizer, prompt_text)

    def _plain_ids(self, prompt: str) -> list[int]:
        """A text that the model continues, behind the token with which its texts begin, if any."""
        tokenizer = self._processor.tokenizer
        start_ids = [i for i in tokenizer("")["input_ids"] if i == tokenizer.bos_token_id]
        ids = start_ids + encode_fenced(tokenizer, fence(prompt, self._control_tokens))
        if not ids:
            raise Refused("the prompt is empty, and this model needs a first token", param="prompt")
        return ids

    def _answer_room(self, request: Request, ids: Sequence[int], counts: Sequence[int]) -> int:
        """Tokens that the answer may have, once pictures take so many in the prompt."""
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
            raise Refused(
                str(error), code="context_length_exceeded", param=request.field_path
            ) from error
        return new_tokens


def read_video(visual: Visual, limits: Limits) -> Video:
    """The frames of a video within the server's limits. Errors as in `load_video`."""
    return load_video(
        visual.content,
        visual.sampling,
        limits.pixels,
        limits.video_seconds,
        limits.frames,
        limits.video_pixels,
        limits.decode_seconds,
    )


@contextmanager
def _at(field_path: str) -> Iterator[None]:
    """Mistakes that are found within are told with their place in the client's request.

    The sender can make a still smaller, only the operator can raise the limit.
    """
    try:
        yield
    except Refused:
        raise
    except TooLargeError as error:
        logger.info("refused, for limits.pixels: %s", error.finding)
        raise _placed(field_path, f"{error.finding}: send a smaller copy of the picture") from error
    except ValueError as error:
        raise _placed(field_path, str(error)) from error


def _placed(field_path: str, reason: str) -> Refused:
    return Refused(f"{field_path}: {reason}" if field_path else reason, param=field_path or None)


def _low_budget(ladder: Sequence[Budget]) -> Budget:
    """The cheapest budget of the ladder with a share of the largest's tokens that still shows
    something.
    """
    most_tokens = max(budget.tokens for budget in ladder)
    return min(budget for budget in ladder if budget.tokens * LOW_SHARE >= most_tokens)


def _largest(visuals: Iterable[Visual], kind: str) -> int:
    return max((len(visual.content) for visual in visuals if visual.kind == kind), default=0)
