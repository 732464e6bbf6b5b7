"""A conversation about images and videos: several turns, each at a scale of its own, every picture
seen once.

In: a loaded model and its processor; images, videos and questions, in any order. Out: an `Answer`
per question, its text also piece by piece while it is made. The features of a picture are made when
it is shown and are read again in every turn, at whatever scale that turn asks for; nothing is seen
twice.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TextStreamer

from m3.inference.generation import answer_room, end_token_ids, token_ids_alone
from m3.inference.image_features import Seen, image_inputs, reading_order, see
from m3.model import M3ForConditionalGeneration
from m3.processing import ImageSource, M3Processor, expand_image_tokens, load_image
from m3.processing.control_tokens import control_tokens, encode_fenced, fence
from m3.processing.frame_scales import Schedule, frame_scales
from m3.processing.video import Sampling, VideoSource, load_video

VIDEO_MARK = "<video>"
"""Where a video stands in a question, as the processor's image token is where an image stands."""


@dataclass(frozen=True)
class Generation:
    """How an answer is decoded: greedily, or where `temperature` is above 0 by sampling from the
    `top_p` likeliest.
    """

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
                "0 and up to 1; "
                f"got {self}"
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
    """What was said, and what the prompt held."""

    text: str
    visual_tokens: int
    text_tokens: int


@dataclass(frozen=True)
class Prompt:
    """The conversation up to a question, as ids with every placeholder in place."""

    ids: list[int]
    scales: list[int]  # of each picture
    visual_tokens: int
    new_tokens: int  # that the answer may have

    @property
    def text_tokens(self) -> int:
        return len(self.ids) - self.visual_tokens


class Conversation:
    """Shown pictures and turns. Holds no scale: each question brings its own."""

    def __init__(
        self,
        model: M3ForConditionalGeneration,
        processor: M3Processor,
        generation: Generation | None = None,
    ) -> None:
        self.model = model
        self.processor = processor
        self.generation = generation or Generation()
        self.shown: list[Seen] = []
        self._control_tokens = control_tokens(processor)
        self._turns: list[dict[str, str]] = []
        # marks and what they stand for, until a question takes them
        self._waiting: list[tuple[str, Seen]] = []

    def show_image(self, source: ImageSource, name: str | None = None) -> Seen:
        """Sees an image; the next question is about it too. Errors as in `load_image`."""
        picture = load_image(source)
        named = name or (str(source) if isinstance(source, str | Path) else "image")
        return self._show(
            self.processor.image_token,
            see(
                self.model,
                self.processor,
                named,
                f"{picture.width} x {picture.height} pixels",
                [picture],
            ),
        )

    def show_video(
        self, source: VideoSource, sampling: Sampling | None = None, name: str | None = None
    ) -> Seen:
        """Sees a video's frames; the next question is about it too. Errors as in `load_video`."""
        video = load_video(source, sampling or Sampling())
        named = name or (str(source) if isinstance(source, str | Path) else "video")
        width, height = video.frames[0].size
        frames = f"{len(video.frames)} frame{'s' * (len(video.frames) != 1)}"
        about = f"{frames} of {width} x {height} pixels, {video.seconds:.1f} s"
        return self._show(VIDEO_MARK, see(self.model, self.processor, named, about, video.frames))

    def ask(
        self,
        question: str,
        scale: Schedule | None = None,
        on_text: Callable[[str], None] | None = None,
        keep: bool = True,
    ) -> Answer:
        """Answers; with `keep` the question and its answer become part of the conversation.

        Args:
            question: what has been shown since the last one stands in front of it, or where the
                marks `<image>` and `<video>` in it say.
            scale: visual tokens per picture (per tile, where images are cut): a number, a schedule
                over the frames of videos (m3/processing/frame_scales.py), or None for the largest
                trained.
            on_text: is called with each piece of the answer as soon as it is sure.

        Raises:
            ValueError: marks that do not match what was shown; a scale that cannot be reached; a
                prompt that is longer than the model can read.
        """
        if not isinstance(question, str):
            raise ValueError(f"the question must be a text, got {type(question).__name__}")
        turns, shown = self._with(question)
        prompt = self.prompt(turns, shown, scale)
        answer = Answer(
            self._generate(prompt, shown, on_text), prompt.visual_tokens, prompt.text_tokens
        )
        if keep:
            self._turns = [
                *turns,
                {"role": "assistant", "content": fence(answer.text, self._control_tokens)},
            ]
            self.shown, self._waiting = shown, []
        return answer

    def outline(self, question: str, scale: Schedule | None) -> Prompt:
        """The prompt that `ask` would run, without running it."""
        turns, shown = self._with(question)
        return self.prompt(turns, shown, scale)

    def pictures(self) -> list[Seen]:
        """All that was shown, also since the last question."""
        return [*self.shown, *(seen for _, seen in self._waiting)]

    def clear(self) -> None:
        """Forgets turns and pictures."""
        self.shown, self._turns, self._waiting = [], [], []

    def prompt(
        self, turns: list[dict[str, str]], shown: list[Seen], scale: Schedule | None
    ) -> Prompt:
        tokenizer, processor = self.processor.tokenizer, self.processor
        pictures = [tiles for seen in shown for tiles in seen.tiles]
        given = (
            None
            if scale is None
            else [s for seen in shown for s in frame_scales(scale, len(seen.tiles))]
        )
        scales = processor.resolve_scales(given, len(pictures), pictures)
        counts = processor.counts(scales, pictures)
        text = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ids = encode_fenced(tokenizer, text)
        ids = expand_image_tokens(ids, self.model.config.image_token_id, counts)
        positions = self.model.config.text_config.max_position_embeddings
        room = answer_room(
            len(ids), sum(counts), len(counts), positions, self.generation.max_new_tokens
        )
        return Prompt(ids, scales, sum(counts), room)

    def _show(self, mark: str, seen: Seen) -> Seen:
        self._waiting.append((mark, seen))
        return seen

    def _with(self, question: str) -> tuple[list[dict[str, str]], list[Seen]]:
        """Turns and pictures with the question and what waits for it; every mark has become its
        image tokens.
        """
        image = self.processor.image_token
        parts = list(reading_order(question, (image, VIDEO_MARK)))
        marks = parts[1::2]
        if not marks:
            marks = [mark for mark, _ in self._waiting]
            parts = [part for mark in marks for part in ("", mark, "\n")] + [question]
        waiting = [mark for mark, _ in self._waiting]
        if sorted(marks) != sorted(waiting):
            raise ValueError(
                f"the question has the marks {', '.join(marks) or 'none'}, but what was shown "
                "since the last one is "
                f"{', '.join(waiting) or 'nothing'}: write each mark once where its picture "
                "stands, or none at all"
            )
        queues = {
            mark: iter([seen for m, seen in self._waiting if m == mark])
            for mark in (image, VIDEO_MARK)
        }
        shown = [next(queues[mark]) for mark in marks]
        frames = iter(shown)
        content = "".join(
            image * len(next(frames).tiles) if part in queues else fence(part, self._control_tokens)
            for part in parts
        )
        return [*self._turns, {"role": "user", "content": content}], [*self.shown, *shown]

    @torch.no_grad()
    def _generate(
        self, prompt: Prompt, shown: list[Seen], on_text: Callable[[str], None] | None
    ) -> str:
        tokenizer, model = self.processor.tokenizer, self.model
        ids = torch.tensor([prompt.ids], device=model.device)
        with token_ids_alone(model):
            output: Tensor = model.generate(  # pyright: ignore[reportAttributeAccessIssue] (it binds to a protocol)
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                **image_inputs(model, self.processor, shown, prompt.scales),
                **self.generation.arguments(),
                max_new_tokens=prompt.new_tokens,
                eos_token_id=sorted(end_token_ids(model, tokenizer)),
                pad_token_id=tokenizer.pad_token_id,
                streamer=None if on_text is None else Pieces(tokenizer, on_text),
            )
        return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip()


class Pieces(TextStreamer):
    """Calls back with each finished piece of text; transformers decides when one is finished."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, on_text: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)  # pyright: ignore[reportArgumentType]
        self._on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._on_text(text)
