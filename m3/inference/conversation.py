"""Conversation about images and videos: several turns, each at its own scale.

In: a loaded model and its processor; images, videos and questions, in any order. Out: an `Answer`
per question, its text also streamed in pieces. Each picture is seen once at a resolution, when a
question first asks for it; every turn reads its features at the scale of that turn.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from math import inf
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TextStreamer

from m3.data.sample import VIDEO_MARK
from m3.inference.budget_choice import checked_choice, choose_budgets
from m3.inference.generation import answer_room, end_token_ids, token_ids_alone
from m3.inference.image_features import (
    PictureFeatures,
    VisualFeatures,
    check_resolutions,
    image_inputs,
    split_at_marks,
)
from m3.model import M3ForConditionalGeneration
from m3.nesting import Budget, Tiles
from m3.processing import ImageSource, M3Processor, expand_image_tokens, load_image
from m3.processing.control_tokens import control_tokens, encode_fenced, fence
from m3.processing.scale_policy import Auto, ScaleSetting, read_policy
from m3.processing.token_counts import budget_resolutions
from m3.processing.video import Sampling, VideoSource, load_video


@dataclass(frozen=True)
class Generation:
    """Decoding of an answer: greedy, or nucleus sampling where `temperature` is above 0."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        is_whole = isinstance(self.max_new_tokens, Integral) and not isinstance(
            self.max_new_tokens, bool
        )
        if not (
            is_whole
            and self.max_new_tokens >= 1
            and 0 <= self.temperature < inf
            and 0 < self.top_p <= 1
        ):
            raise ValueError(
                "expected max_new_tokens as a whole number from 1, temperature from 0, top_p above "
                f"0 and up to 1; got {self}"
            )

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `generate`."""
        if self.temperature == 0:
            return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        return {
            "do_sample": True,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": None,
        }


@dataclass(frozen=True)
class Answer:
    """Text of an answer, and token counts of its prompt."""

    text: str
    visual_tokens: int
    text_tokens: int


@dataclass(frozen=True)
class Prompt:
    """Token ids of the conversation up to a question, image placeholders included."""

    ids: list[int]
    budgets: list[Budget]  # of each picture
    tiles: list[Tiles]  # of each picture
    visual_tokens: int
    new_tokens: int  # limit of the answer

    @property
    def text_tokens(self) -> int:
        return len(self.ids) - self.visual_tokens

    @property
    def tile_counts(self) -> Counter[int | None]:
        """Tiles of all pictures at each resolution that they are seen at."""
        numbers: Counter[int | None] = Counter()
        for tiles in self.tiles:
            numbers[tiles.resolution] += tiles.number
        return numbers


class Conversation:
    """Turns and pictures. It holds no scale: each question has its own."""

    def __init__(
        self,
        model: M3ForConditionalGeneration,
        processor: M3Processor,
        generation: Generation | None = None,
    ) -> None:
        self.model = model
        self.processor = processor
        self.generation = generation or Generation()
        self.visuals: list[VisualFeatures] = []
        self._control_tokens = control_tokens(processor)
        self._turns: list[dict[str, str]] = []
        # (mark, visual) of what was added since the last question
        self._pending_visuals: list[tuple[str, VisualFeatures]] = []

    def show_image(self, source: ImageSource, name: str | None = None) -> VisualFeatures:
        """Add an image to the next question. Errors as in `load_image`."""
        picture = load_image(source)
        title = name or (str(source) if isinstance(source, str | Path) else "image")
        description = f"{picture.width} x {picture.height} pixels"
        visual = VisualFeatures(title, description, (picture,))
        return self._add_visual(self.processor.image_token, visual)

    def show_video(
        self, source: VideoSource, sampling: Sampling | None = None, name: str | None = None
    ) -> VisualFeatures:
        """Add the frames of a video to the next question. Errors as in `load_video`."""
        video = load_video(source, sampling or Sampling())
        title = name or (str(source) if isinstance(source, str | Path) else "video")
        width, height = video.frames[0].size
        frame_count = f"{len(video.frames)} frame{'s' * (len(video.frames) != 1)}"
        description = f"{frame_count} of {width} x {height} pixels, {video.seconds:.1f} s"
        visual = VisualFeatures(title, description, tuple(video.frames))
        return self._add_visual(VIDEO_MARK, visual)

    def ask(
        self,
        question: str,
        scale: ScaleSetting | None = None,
        on_text: Callable[[str], None] | None = None,
        keep: bool = True,
    ) -> Answer:
        """Answer a question; with `keep` both are added to the conversation.

        Args:
            question: pictures added since the last one precede it, unless the marks `<image>` and
                `<video>` in it give their positions.
            scale: visual tokens per picture (per tile, where images are cut): a number, tokens at
                a resolution ("36@48"), a schedule over the frames of videos
                (m3/processing/scale_policy.py), or None for the largest trained.
            on_text: is called with each piece of the answer as soon as it is final.

        Raises:
            ValueError: marks that do not match what was shown; a scale that cannot be reached; a
                prompt that is longer than the model can read.
        """
        if not isinstance(question, str):
            raise ValueError(f"the question must be a text, got {type(question).__name__}")
        turns, turn_visuals = self._add_question(question)
        prompt = self.prompt(turns, turn_visuals, scale)
        answer = Answer(
            self._generate(prompt, turn_visuals, on_text), prompt.visual_tokens, prompt.text_tokens
        )
        if keep:
            self._turns = [
                *turns,
                {"role": "assistant", "content": fence(answer.text, self._control_tokens)},
            ]
            self.visuals, self._pending_visuals = turn_visuals, []
        return answer

    def outline(self, question: str, scale: ScaleSetting | None) -> Prompt:
        """The prompt that `ask` would run, without running it."""
        turns, turn_visuals = self._add_question(question)
        return self.prompt(turns, turn_visuals, scale)

    def pictures(self) -> list[VisualFeatures]:
        """All images and videos, those added since the last question included."""
        return [*self.visuals, *(visual for _, visual in self._pending_visuals)]

    def clear(self) -> None:
        """Remove all turns and pictures."""
        self.visuals, self._turns, self._pending_visuals = [], [], []

    def prompt(
        self,
        turns: list[dict[str, str]],
        turn_visuals: list[VisualFeatures],
        scale: ScaleSetting | None,
    ) -> Prompt:
        tokenizer, processor = self.processor.tokenizer, self.processor
        text = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ids = encode_fenced(tokenizer, text)
        policy = None if scale is None else read_policy(scale)
        budgets: list[Budget] = []
        tiles: list[Tiles] = []
        for visual in turn_visuals:
            setting = scale
            if isinstance(policy, Auto):
                side, number = checked_choice(self.model.config, policy).view, len(visual.pictures)
                views = visual.see(self.model, processor, [side] * number)
                setting = choose_budgets(self.model, policy, views, [ids] * number)
            visual_budgets, visual_tiles = visual.outline(processor, setting)
            budgets += visual_budgets
            tiles += visual_tiles
        check_resolutions(self.model.config, budgets)
        token_counts = processor.counts(budgets, tiles)
        prompt_ids = expand_image_tokens(ids, self.model.config.image_token_id, token_counts)
        max_positions = self.model.config.text_config.max_position_embeddings
        visual_tokens, new_tokens = sum(token_counts), self.generation.max_new_tokens
        answer_tokens = answer_room(
            len(prompt_ids), visual_tokens, len(token_counts), max_positions, new_tokens
        )
        return Prompt(prompt_ids, budgets, tiles, visual_tokens, answer_tokens)

    def _add_visual(self, mark: str, visual: VisualFeatures) -> VisualFeatures:
        self._pending_visuals.append((mark, visual))
        return visual

    def _add_question(self, question: str) -> tuple[list[dict[str, str]], list[VisualFeatures]]:
        """Turns and visuals including the question, with image tokens in place of marks."""
        image = self.processor.image_token
        pieces = list(split_at_marks(question, (image, VIDEO_MARK)))
        marks = pieces[1::2]
        pending_marks = [mark for mark, _ in self._pending_visuals]
        if not marks:
            marks = pending_marks
            pieces = [piece for mark in marks for piece in ("", mark, "\n")] + [question]
        if sorted(marks) != sorted(pending_marks):
            raise ValueError(
                f"the question has the marks {', '.join(marks) or 'none'}, but what was shown "
                f"since the last one is {', '.join(pending_marks) or 'nothing'}: write each mark "
                "once where its picture stands, or none at all"
            )
        queues = {
            mark: iter([visual for m, visual in self._pending_visuals if m == mark])
            for mark in (image, VIDEO_MARK)
        }
        question_visuals = [next(queues[mark]) for mark in marks]
        visual_iterator = iter(question_visuals)
        content = "".join(
            image * len(next(visual_iterator).pictures)
            if piece in queues
            else fence(piece, self._control_tokens)
            for piece in pieces
        )
        turns = [*self._turns, {"role": "user", "content": content}]
        return turns, [*self.visuals, *question_visuals]

    def _see_pictures(
        self, visuals: Sequence[VisualFeatures], budgets: Sequence[Budget]
    ) -> list[PictureFeatures]:
        sides = iter(budget_resolutions(budgets))
        return [
            picture
            for visual in visuals
            for picture in visual.see(
                self.model, self.processor, list(islice(sides, len(visual.pictures)))
            )
        ]

    @torch.no_grad()
    def _generate(
        self,
        prompt: Prompt,
        turn_visuals: list[VisualFeatures],
        on_text: Callable[[str], None] | None,
    ) -> str:
        tokenizer, model = self.processor.tokenizer, self.model
        pictures = self._see_pictures(turn_visuals, prompt.budgets)
        ids = torch.tensor([prompt.ids], device=model.device)
        with token_ids_alone(model):
            # `generate` binds to a protocol
            output_ids: Tensor = model.generate(  # pyright: ignore[reportAttributeAccessIssue]
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                **image_inputs(model, self.processor, pictures, prompt.budgets),
                **self.generation.arguments(),
                max_new_tokens=prompt.new_tokens,
                eos_token_id=sorted(end_token_ids(model, tokenizer)),
                pad_token_id=tokenizer.pad_token_id,
                streamer=None if on_text is None else TextPieces(tokenizer, on_text),
            )
        return tokenizer.decode(output_ids[0, ids.shape[1] :], skip_special_tokens=True).strip()


class TextPieces(TextStreamer):
    """Streamer that calls back with each piece of text that transformers takes for final."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, on_text: Callable[[str], None]) -> None:
        super().__init__(
            tokenizer,  # pyright: ignore[reportArgumentType]
            skip_prompt=True,
            skip_special_tokens=True,
        )
        self._on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._on_text(text)
