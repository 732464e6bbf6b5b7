"""An answer to a question about images or a video, in one call.

m3.ask("playground/m3-tiny", "What colour is the background?", images=["photo.png"],
matryoshka_vis_token_scale=9)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from m3.inference.conversation import Conversation, Generation
from m3.inference.loading import load
from m3.model import M3ForConditionalGeneration
from m3.processing import ImageSource, M3Processor
from m3.processing.scale_policy import ScaleSetting
from m3.processing.video import Sampling, VideoSource


def ask(
    model: str | Path | tuple[M3ForConditionalGeneration, M3Processor],
    question: str,
    *,
    images: ImageSource | Sequence[ImageSource] = (),
    video: VideoSource | None = None,
    matryoshka_vis_token_scale: ScaleSetting | None = None,
    sampling: Sampling | None = None,
    generation: Generation | None = None,
    device: str | None = None,
) -> str:
    """Answer a question about images or a video.

    Args:
        model: a checkpoint, which is loaded for this call; or the result of `m3.load`, to ask more
            than once.
        question: images precede it, then the video, unless `<image>` and `<video>` in it mark
            their positions.
        images: paths, bytes, addresses, PIL images; one or several.
        matryoshka_vis_token_scale: visual tokens per picture (36), tokens at a resolution
            ("36@48"), a schedule over frames, or None for the largest trained.
        sampling: frames of the video to read; 8 by default.
        device: device to load a checkpoint onto; None for the available accelerator.

    Raises:
        ValueError: as in `load`, `load_image`, `load_video` and `Conversation.ask`.
    """
    if isinstance(model, tuple) and device is not None:
        raise ValueError(
            f"device {device!r} was given for a model that is loaded: it stays where it is"
        )
    conversation = Conversation(
        *(model if isinstance(model, tuple) else load(model, device=device)), generation
    )
    for image in images if isinstance(images, list | tuple) else [cast(ImageSource, images)]:
        conversation.show_image(image)
    if video is not None:
        conversation.show_video(video, sampling)
    return conversation.ask(question, matryoshka_vis_token_scale).text
