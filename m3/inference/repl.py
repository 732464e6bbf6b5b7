"""Chat on a terminal or through a pipe.

In: a conversation, lines. Out: streamed answers. A line that begins with a slash is a command; an
error is printed and the conversation goes on.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from m3.config import near_match
from m3.inference.conversation import Conversation
from m3.inference.cost_table import explain_costs
from m3.inference.image_features import check_resolutions
from m3.processing.scale_policy import Fixed, ScaleSetting, read_policy, split_alternatives
from m3.processing.video import Sampling

logger = logging.getLogger(__name__)

Write = Callable[[str], None]
HELP = {
    "/image FILE": "show an image; the next question is about it too",
    "/video FILE": "show a video",
    "/scale SCALE": "visual tokens per picture from now on: 9, or 36@48 (the picture seen at 48 "
    "pixels), or 144+1 over frames, or several to compare: 1,9,36@48",
    "/explain": "tiles, tokens and FLOPs of the conversation at each trained scale",
    "/clear": "forget pictures and turns",
    "/help": "this list",
    "/exit": "end (as does the end of the input)",
}
COMMANDS = tuple(line.split()[0] for line in HELP)


@dataclass(frozen=True)
class Visual:
    """An image or video file to add to the conversation."""

    kind: Literal["image", "video"]
    path: str


def show_visual(conversation: Conversation, visual: Visual, sampling: Sampling) -> None:
    if visual.kind == "image":
        conversation.show_image(visual.path)
    else:
        conversation.show_video(visual.path, sampling)


def run_commands(
    conversation: Conversation,
    scales: Sequence[ScaleSetting | None],
    sampling: Sampling,
    lines: Iterable[str],
    write: Write,
) -> None:
    """Run each of `lines` until they end or one is /exit."""
    for line in lines:
        if line.strip() == "/exit":
            return
        try:
            scales = run_line(conversation, line.strip(), scales, sampling, write)
        except ValueError as error:
            write(f"{error}\n")


def run_line(
    conversation: Conversation,
    line: str,
    scales: Sequence[ScaleSetting | None],
    sampling: Sampling,
    write: Write,
) -> Sequence[ScaleSetting | None]:
    """Run one line and return the scales for the next ones."""
    command, _, argument = line.partition(" ")
    argument = argument.strip()
    if not line.startswith("/"):
        if line:
            stream_answer(conversation, line, scales, write)
    elif command in ("/image", "/video"):
        show_visual(
            conversation, Visual("image" if command == "/image" else "video", argument), sampling
        )
    elif command == "/scale":
        new_scales = split_alternatives(argument)
        for policy in map(read_policy, new_scales):
            if isinstance(policy, Fixed):
                budget = conversation.processor.budget(policy.budget)
                check_resolutions(conversation.model.config, [budget])
        return new_scales
    elif command == "/explain":
        write(explain_costs(conversation, "", conversation.processor.trained_scales) + "\n")
    elif command == "/clear":
        conversation.clear()
    elif command == "/help":
        write("".join(f"{usage:<14}{text}\n" for usage, text in HELP.items()))
    else:
        raise ValueError(f"unknown command {command}. {near_match(command, COMMANDS)}")
    return scales


def stream_answer(
    conversation: Conversation, question: str, scales: Sequence[ScaleSetting | None], write: Write
) -> None:
    """Stream the answer at each scale; the last one is added to the conversation."""
    if not conversation.pictures():
        logger.warning("No picture was shown, so the words of the question are all there is.")
    for position, scale in enumerate(scales):
        if len(scales) > 1:
            write(f"[{scale}] ")
        conversation.ask(question, scale, write, keep=position == len(scales) - 1)
        write("\n")
