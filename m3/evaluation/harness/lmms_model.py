"""The `m3` model for lmms-eval, found by the entry point `lmms_eval.models` (plugin.py).

In: the harness's requests, chat (`doc_to_messages`) or simple (`doc_to_text`, `doc_to_visual`).
Out: text with token counts, or (loss, is greedy). The budget is `matryoshka_vis_token_scale` in
--model_args, or per task in --gen_kwargs: visual tokens (9), tokens at a resolution (36@48), or a
choice (auto).

    lmms-eval --model m3 --model_args pretrained=playground/m3-tiny,matryoshka_vis_token_scale=9 \\
        --tasks m3_tiny --include_path lmms_eval_tasks
"""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.api.task import ConfigurableMessagesTask, ConfigurableTask
from lmms_eval.protocol import ChatImageContent, ChatMessages, ChatTextContent, ChatVideoContent
from PIL import Image
from tqdm import tqdm

from m3.evaluation.answering.decoding import Decoding
from m3.evaluation.answering.engine import Engine
from m3.evaluation.answering.questions import Picture, Question, Reply
from m3.evaluation.answering.settling import check_setting
from m3.evaluation.harness.frames import FRAMES, sampling_of
from m3.hardware import choose_device
from m3.nesting import SCALE_OPTION
from m3.processing.scale_policy import is_budget
from m3.processing.video import Sampling, load_video

ARGUMENTS = (
    "pretrained",
    SCALE_OPTION,
    "dtype",
    "attention",
    "frames",
    "batch_size",
    "max_batch_size",
    "device",
)
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".gif", ".m4v")
CHUNK = 8
"""Requests held in memory at a time (with their images), in multiples of the batch size."""


class EngineModel(lmms):
    """An engine at one scale, as the harness wants a model.

    `is_simple` says which form the requests have.
    """

    def __init__(
        self,
        engine: Engine,
        scale: int | str,
        batch_size: int,
        is_simple: bool,
        frames: str | int = FRAMES,
    ) -> None:
        super().__init__()
        check_scale(engine, scale)
        self.engine = engine
        self.scale = scale
        self.batch_size = batch_size
        self.is_simple = is_simple
        self.sampling = sampling_of(frames)
        # joins the process group that torchrun or accelerate launched, if any
        self.accelerator = Accelerator()
        self._rank = self.accelerator.process_index
        self._world_size = self.accelerator.num_processes

    def __str__(self) -> str:
        return f"m3(weights={self.engine.weights}, {SCALE_OPTION}={self.scale})"

    @property
    def device(self) -> torch.device:
        return self.engine.model.device

    def clean(self) -> None:
        """Keeps the model: by default the harness deletes it after each evaluation."""

    # The harness takes the results of these two in the wrapping that its own signatures do not
    # mention.
    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Answers in the order of the requests."""
        return [
            GenerationResult(
                reply.text,
                TokenCounts(reply.visual_tokens + reply.text_tokens, reply.answer_tokens),
            )
            for reply in self.replies(requests)
        ]

    def loglikelihood(self, requests: Sequence[Instance]) -> list[GenerationResult]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(loss, is greedy) of each continuation, where loss is minus the sum of its
        log-probabilities.

        The harness picks the smallest; it takes the pair only in this wrapping.
        """
        request_results = []
        for reply in self.replies(requests):
            assert reply.log_likelihood is not None
            value, is_greedy = reply.log_likelihood
            token_counts = TokenCounts(reply.visual_tokens + reply.text_tokens, reply.answer_tokens)
            request_results.append(GenerationResult((-value, is_greedy), token_counts))  # pyright: ignore[reportArgumentType]
        return request_results

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        raise ValueError(
            f"m3 answers in one round; task {requests[0].task_name!r} asks for several. Leave it "
            "out of --tasks"
        )

    def replies(self, requests: Sequence[Instance]) -> list[Reply]:
        """Answers requests chunk by chunk, so that few images are in memory at once."""
        replies: list[Reply] = []
        with tqdm(
            total=len(requests), desc=f"{self.scale} tokens", unit="doc", disable=self._rank != 0
        ) as bar:
            for chunk_start in range(0, len(requests), CHUNK * self.batch_size):
                chunk = requests[chunk_start : chunk_start + CHUNK * self.batch_size]
                questions = [self.question(request, self.document(request)) for request in chunk]
                chunk_replies: dict[int, Reply] = {}
                for batch in self.engine.answer(questions, self.batch_size):
                    chunk_replies.update(batch)
                    bar.update(len(batch))
                replies += [chunk_replies[reply_index] for reply_index in range(len(chunk))]
        return replies

    def document(self, request: Instance) -> dict[str, Any]:
        """The document a request is about, with its images."""
        doc_id, task, split = request.arguments[-3:]
        return self.task_dict[task][split][doc_id]

    def question(self, request: Instance, document: dict[str, Any]) -> Question:
        """The question of a request of the harness, at the scale of its settings or else of this
        model.
        """
        if request.request_type == "loglikelihood":
            context, continuation, doc_to_visual = request.arguments[:3]
            continuation_text = (
                continuation if isinstance(continuation, str) else continuation(document)
            )
            chat_turns, pictures = simple_messages(
                context, doc_to_visual(document), self.engine, self.sampling
            )
            # The template ends where an answer begins, so the blank that joins it to plain text is
            # not part of it.
            return self.engine.question(
                chat_turns, pictures, self.scale, Decoding(), continuation_text.lstrip()
            )
        if self.is_simple:
            context, settings, doc_to_visual = request.arguments[:3]
            chat_turns, pictures = simple_messages(
                context, doc_to_visual(document), self.engine, self.sampling
            )
        else:
            _, doc_to_messages, settings = request.arguments[:3]
            chat = ChatMessages(messages=doc_to_messages(document))
            chat_turns, pictures = chat_messages(chat, self.engine, self.sampling)
        scale = settings.get(SCALE_OPTION, self.scale)
        check_scale(self.engine, scale)
        return self.engine.question(chat_turns, pictures, scale, Decoding.from_task(settings))


def pictures_of(visual: Any, sampling: Sampling) -> list[Picture]:
    """An image as itself, a video as its frames."""
    is_video = isinstance(visual, str | Path) and str(visual).lower().endswith(VIDEO_SUFFIXES)
    images = load_video(visual, sampling).frames if is_video else [visual]
    return [Picture.of(image) for image in images]


def listed(visuals: Any) -> list[Any]:
    """List what `doc_to_visual` gave: a task may give none, several, or one by itself."""
    if visuals is None:
        return []
    return [visuals] if isinstance(visuals, str | Path | Image.Image) else list(visuals)


def shown(task: ConfigurableTask, document: dict[str, Any]) -> tuple[str, list[Any]]:
    """Text, images and videos of a document's question."""
    if not isinstance(task, ConfigurableMessagesTask):
        visuals = task.doc_to_visual(document)
        return str(task.doc_to_text(document)), listed(visuals)
    document_messages = task.doc_to_messages(document)
    chat_turns = ChatMessages(messages=document_messages).messages  # pyright: ignore[reportArgumentType] (it may not be typed a list)
    user_parts = [
        user_part
        for chat_turn in chat_turns
        if chat_turn.role == "user"
        for user_part in chat_turn.content
    ]
    question_text = "\n".join(
        user_part.text for user_part in user_parts if isinstance(user_part, ChatTextContent)
    )
    return question_text, [
        user_part.url
        for user_part in user_parts
        if isinstance(user_part, ChatImageContent | ChatVideoContent)
    ]


def simple_messages(
    context: str, visuals: Any, engine: Engine, sampling: Sampling
) -> tuple[list[dict], list[Picture]]:
    """One user turn: the images first, each on its line (LLaVA), unless the text has a place for
    each of them.
    """
    token = engine.processor.image_token
    pictures = [picture for visual in listed(visuals) for picture in pictures_of(visual, sampling)]
    text_parts = context.split(token)
    if pictures and len(text_parts) == len(pictures) + 1:
        plain_text = token.join(engine.plain(text_part) for text_part in text_parts)
    else:
        plain_text = f"{token}\n" * len(pictures) + engine.plain(context)
    return [{"role": "user", "content": plain_text}], pictures


def chat_messages(
    chat: ChatMessages, engine: Engine, sampling: Sampling
) -> tuple[list[dict], list[Picture]]:
    """The turns of a chat as plain text, parts joined by line ends, images and frames as image
    tokens.
    """
    plain_messages, pictures = [], []
    for chat_message in chat.messages:
        message_parts = []
        for message_content in chat_message.content:
            if message_content.type == "text":
                message_parts.append(engine.plain(message_content.text))
            elif message_content.type in ("image", "video"):
                content_pictures = pictures_of(message_content.url, sampling)
                pictures += content_pictures
                message_parts += [engine.processor.image_token] * len(content_pictures)
            else:
                raise ValueError(
                    f"m3 reads text, images and videos; this task sends {message_content.type}"
                )
        plain_messages.append({"role": chat_message.role, "content": "\n".join(message_parts)})
    return plain_messages, pictures


def check_scale(engine: Engine, scale: int | str) -> None:
    """Raises ValueError where the model cannot see the budget's resolution, where its grid
    cannot give the tokens (those that it can are listed), or where it has no router for `auto`.
    """
    if not isinstance(scale, int | str) or isinstance(scale, bool):
        raise ValueError(
            f"{SCALE_OPTION} is a number of visual tokens such as 36, tokens at a resolution such as "
            f"36@48, or auto, got {scale!r}"
        )
    if is_budget(scale):
        engine.model.config.grid_at(engine.processor.budget(scale).resolution)
    else:
        check_setting(engine.model.config, scale)


class FromArguments(EngineModel):
    """Built by the harness from --model_args, --batch_size and --device."""

    def __init__(
        self,
        pretrained: str,
        matryoshka_vis_token_scale: int | str | None = None,
        dtype: str = "auto",
        attention: str = "sdpa",
        frames: str | int = FRAMES,
        batch_size: int | str = 16,
        max_batch_size: int | None = None,
        device: str | None = None,
        **unknown: object,
    ) -> None:
        """`batch_size` counts rows at the largest trained scale.

        `matryoshka_vis_token_scale` defaults to that scale.

        Raises:
            ValueError: an unknown argument (with the near match), a scale out of reach, a batch
                size that is no number.
        """
        refuse_unknown(list(unknown))
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ValueError(f"batch_size must be a number of rows, at least 1, got {batch_size!r}")
        if max_batch_size is not None:
            raise ValueError(
                "max_batch_size belongs to an automatic batch size, which m3 does not have; use "
                "batch_size"
            )
        engine = Engine.load(str(pretrained), local_device(device), dtype, attention)
        scale = (
            engine.default_scale
            if matryoshka_vis_token_scale is None
            else matryoshka_vis_token_scale
        )
        super().__init__(engine, scale, int(batch_size), type(self).is_simple, frames)


class M3Simple(FromArguments):
    is_simple = True


class M3Chat(FromArguments):
    is_simple = False


def refuse_unknown(option_names: Sequence[str]) -> None:
    for option_name in option_names:
        near = get_close_matches(option_name, ARGUMENTS, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"m3 has no model argument {option_name!r}{hint} It has: {', '.join(ARGUMENTS)}"
        )


def default_device(device: str | None) -> str:
    """As for every verb: what was asked for, else the accelerator there is."""
    return str(choose_device(device))


def local_device(device: str | None) -> str:
    """The device of this process: of several local processes each takes its own accelerator."""
    device_name = default_device(device)
    accelerator = Accelerator()
    has_own_device = (
        accelerator.num_processes > 1 and device_name != "cpu" and ":" not in device_name
    )
    return f"{device_name}:{accelerator.local_process_index}" if has_own_device else device_name
