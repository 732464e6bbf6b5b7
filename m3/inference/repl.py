"""Question and answer on a terminal or through a pipe.

In: a conversation, lines. Out: answers, piece by piece. A line that begins with a slash is a
command; a mistake is told and the conversation goes on.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from m3.config import near_match
from m3.inference.conversation import Conversation
from m3.inference.cost_table import explain
from m3.processing.frame_scales import Schedule, split_alternatives
from m3.processing.video import Sampling

Write = Callable[[str], None]
HELP = {
    "/image FILE": "show an image; the next question is about it too",
    "/video FILE": "show a video",
    "/scale SCALE": "visual tokens per picture from now on: 9, or 144+1 over frames, or several to "
    "compare: 1,9,36",
    "/explain": "tiles, tokens and FLOPs of the conversation at each trained scale",
    "/clear": "forget pictures and turns",
    "/help": "this list",
    "/exit": "end (as does the end of the input)",
}
COMMANDS = tuple(line.split()[0] for line in HELP)


@dataclass(frozen=True)
class Visual:
    """A file to show."""

    kind: Literal["image", "video"]
    path: str


def show(conversation: Conversation, visual: Visual, sampling: Sampling) -> None:
    if visual.kind == "image":
        conversation.show_image(visual.path)
    else:
        conversation.show_video(visual.path, sampling)


def run(
    conversation: Conversation,
    scales: Sequence[Schedule | None],
    sampling: Sampling,
    lines: Iterable[str],
    write: Write,
) -> None:
    """Takes each of `lines` until they end or one says /exit."""
    for line in lines:
        if line.strip() == "/exit":
            return
        try:
            scales = step(conversation, line.strip(), scales, sampling, write)
        except ValueError as error:
            write(f"{error}\n")


def step(
    conversation: Conversation,
    line: str,
    scales: Sequence[Schedule | None],
    sampling: Sampling,
    write: Write,
) -> Sequence[Schedule | None]:
    """One line; returns the scales from now on."""
    command, _, rest = line.partition(" ")
    rest = rest.strip()
    if not line.startswith("/"):
        if line:
            answer(conversation, line, scales, write)
    elif command in ("/image", "/video"):
        show(conversation, Visual("image" if command == "/image" else "video", rest), sampling)
    elif command == "/scale":
        chosen = split_alternatives(rest)
        conversation.processor.check_scales([scale for scale in chosen if isinstance(scale, int)])
        return chosen
    elif command == "/explain":
        write(explain(conversation, "", conversation.processor.trained_scales) + "\n")
    elif command == "/clear":
        conversation.clear()
    elif command == "/help":
        write("".join(f"{name:<14}{text}\n" for name, text in HELP.items()))
    else:
        raise ValueError(f"unknown command {command}. {near_match(command, COMMANDS)}")
    return scales


def answer(
    conversation: Conversation, question: str, scales: Sequence[Schedule | None], write: Write
) -> None:
    """Streams the answer; at several scales one after the other, each under its heading, and the
    last one is kept.
    """
    for position, scale in enumerate(scales):
        if len(scales) > 1:
            write(f"[{scale}] ")
        conversation.ask(question, scale, write, keep=position == len(scales) - 1)
        write("\n")
