"""Text and images in, everything the model's `forward` and `generate` need out.

The scale of every image is set here.

Comes in: prompts in which `<image>` marks where each image stands, the images, and
`matryoshka_vis_token_scale`: one budget for all images (36, or "36@48": 36 tokens of an image seen
at 48 pixels), one per image, or None for the largest trained.

Goes out: `input_ids` and `attention_mask` `[b, l]` with each `<image>` repeated to
the exact count of visual tokens of its image at its scale, `pixel_values [t, 3, H, W]` with the
tiles of every image in reading order, `image_scales [i]`, and where images are cut into tiles
`image_tiles [i]` and `image_sizes [i, 2]` (see m3/model/modeling.py for each).

A scale is visual tokens per tile. `count_tokens` says what an image of a given size takes in all,
before anything is loaded.
"""

import os
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Unpack, cast

import numpy as np
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    BaseImageProcessor,
    BatchFeature,
    PreTrainedTokenizerBase,
)
from transformers.processing_utils import MultiModalData, ProcessorMixin, TextKwargs

from m3.nesting import make_tiling, read_ladder
from m3.processing.call_options import M3ProcessorKwargs, plain_numbers, refuse_unknown
from m3.processing.chat_template import CONTROL_TOKENS, IMAGE_TOKEN, chatml_template
from m3.processing.images import MAX_PIXELS, ImageSource
from m3.processing.tiles import tile_options
from m3.processing.token_counts import ScaleArithmetic, budget_resolutions

Images = ImageSource | Sequence[ImageSource] | Sequence[Sequence[ImageSource] | None]


class M3Processor(ScaleArithmetic, ProcessorMixin):
    """Tokenizer, image processor and the arithmetic of scales, saved and loaded as one
    (`processor_config.json`).
    """

    valid_processor_kwargs = M3ProcessorKwargs
    # The chat template writes every special token itself, in training and in generation alike.
    text_kwargs: ClassVar[TextKwargs] = {"add_special_tokens": False}  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        image_processor: BaseImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        grid: int | Sequence[int] = (12, 12),
        nesting: dict[str, Any] | None = None,
        tiling: dict[str, Any] | None = None,
        image_token: str = IMAGE_TOKEN,
        chat_template: str | dict[str, str] | None = None,
    ) -> None:
        """
        Args:
            image_processor: the vision encoder's own, PIL backend.
            tokenizer: holds `image_token` as one token, and ChatML's two unless a chat template is
                given.
            grid: tokens that the connector gives per tile: (rows, columns), or their number.
            nesting: `{"kind": ..., "trained_scales": [...]}` as in the model's configuration.
            tiling: how images are cut into tiles, as in the model's configuration (`m3.nesting.Tiling`);
                None: not at all.
            image_token: stands for an image in prompts, and as placeholder in `input_ids`.
            chat_template: None for ChatML; one of your own needs `{% generation %}` marks to be
                trained with.

        Raises:
            ValueError: a token is missing, the nesting or tiling is unknown, or a trained scale
                cannot be reached from the grid.
        """
        self.grid = grid if isinstance(grid, int) else (int(grid[0]), int(grid[1]))
        self.nesting = _checked_nesting(
            nesting or {"kind": "grid_pool", "trained_scales": [1, 4, 9, 36, 144]}
        )
        self.tiling = make_tiling(tiling or {}).to_dict()
        self.image_token = image_token
        if chat_template is None:
            chat_template = chatml_template(image_token)
            required = (image_token, *CONTROL_TOKENS)
        else:
            required = (image_token,)
        _require_tokens(tokenizer, required)
        self.image_token_id = cast(int, tokenizer.convert_tokens_to_ids(image_token))
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.check_budgets(self.ladder)

    # ------------------------------------------------------------------ calling
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        images: Images | None = None,
        text: str | list[str] | Images | None = None,
        videos: object | None = None,
        audio: object | None = None,
        padding: bool | str = True,
        padding_side: Literal["left", "right"] = "left",
        return_tensors: str | None = "pt",
        **kwargs: Unpack[M3ProcessorKwargs],
    ) -> BatchFeature:
        """Turn prompts and images into model inputs.

        Args:
            images: one image, a list in reading order, or a list per prompt (None: it has none).
                Paths, bytes, PIL images, addresses.
            text: one prompt or several. `<image>` stands for an image. As transformers' processors
                do, this takes the two in the other order too, where it can tell.
            videos, audio: not supported; present because transformers passes them.
            padding, padding_side: on the left by default, as batched generation needs it.
            return_tensors: "pt", "np" or None for lists.
            kwargs: `matryoshka_vis_token_scale`, `max_pixels`, `fetch_urls`, for models that read
                tiles of several sizes (Aria) `max_image_size` and `split_image`, and the
                tokenizer's options.

        Returns:
            `input_ids`, `attention_mask`, and with images `pixel_values`, `image_scales` and what
            the tiling adds.

        Raises:
            ValueError: images and `<image>` marks differ in number; a scale is unreachable or their
                number is wrong; an unknown keyword; an image that cannot be read.
        """
        refuse_unknown(dict(kwargs))
        if not _is_text(text) and text is not None:
            if not _is_text(images):
                raise ValueError(
                    f"text must be a string or a list of strings, got {type(text).__name__}"
                )
            images, text = text, images  # pyright: ignore[reportAssignmentType] (told apart just now)
        if videos is not None or audio is not None:
            raise ValueError(
                "M3Processor reads text and images; got videos or audio. Pass the frames of a "
                "video as images"
            )
        return super().__call__(
            images=images,
            text=text,
            # transformers takes these flat as well as grouped, but only types the groups
            padding=padding,  # pyright: ignore[reportCallIssue]
            padding_side=padding_side,  # pyright: ignore[reportCallIssue]
            return_tensors=return_tensors,  # pyright: ignore[reportCallIssue]
            **plain_numbers(dict(kwargs)),
        )

    # What follows are the steps of transformers' `ProcessorMixin.__call__`, in its order. They take
    # other inputs than its own do (bytes; no arrays, no pretokenised text); the checker is told to
    # accept that.
    def prepare_inputs_layout(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        images: Images | None = None,
        text: str | list[str] | None = None,
        videos: None = None,
        audio: None = None,
        **kwargs: Unpack[M3ProcessorKwargs],
    ) -> tuple[Images | None, list[str] | None, None, None]:
        """Prompts as a list; "no images" as None. Images stay as they are until they are needed."""
        prompts = [text] if isinstance(text, str) else None if text is None else list(text)
        if isinstance(images, list | tuple) and any(
            isinstance(entry, list | tuple) for entry in images
        ):
            images = [[] if entry is None else entry for entry in images]  # pyright: ignore[reportAssignmentType]
        return (None if images is None or not _flatten(images) else images), prompts, None, None

    def validate_inputs(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        images: Images | None = None,
        text: list[str] | None = None,
        videos: None = None,
        audio: None = None,
        **kwargs: Unpack[M3ProcessorKwargs],
    ) -> None:
        """Every `<image>` has its image and every image its `<image>`."""
        if images is None and text is None:
            raise ValueError("M3Processor got neither text nor images; pass at least one of them")
        if text is None:
            return
        if not text or not all(isinstance(prompt, str) for prompt in text):
            raise ValueError(
                f"text must be a string or a non-empty list of strings, got {_kinds(text)}"
            )
        marks = [prompt.count(self.image_token) for prompt in text]
        if images is None:
            given, per_prompt = [0] * len(text), True
        elif isinstance(images, list | tuple) and all(
            isinstance(entry, list | tuple) for entry in images
        ):
            given, per_prompt = [len(list(entry)) for entry in images], True  # pyright: ignore[reportArgumentType]
        else:
            given, per_prompt = [len(_flatten(images))], False
        if per_prompt and len(given) != len(text):
            raise ValueError(
                f"images holds lists for {len(given)} prompts, but text holds {len(text)} prompts"
            )
        wrong = marks != given if per_prompt else sum(marks) != sum(given)
        if wrong:
            detail = (
                f" (per prompt: {marks} marks, {given} images)"
                if per_prompt and len(text) > 1
                else ""
            )
            raise ValueError(
                f"text holds {sum(marks)} {self.image_token} marks but {sum(given)} images were "
                f"passed{detail}. "
                f"Write one {self.image_token} where each image stands"
            )

    def _process_images(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        images: Images,
        matryoshka_vis_token_scale: int | str | list[int | str] | None = None,
        max_pixels: int = MAX_PIXELS,
        fetch_urls: bool = False,
        max_image_size: int | list[int] | None = None,
        split_image: bool | list[bool] | None = None,
        **_: Any,
    ) -> tuple[dict[str, Any], list[str]]:
        """`pixel_values`, `image_scales` and what the tiling adds, and the text that replaces
        each `<image>`.
        """
        flat = _flatten(images)
        # refused before any image is opened
        asked_budgets = self.resolve_scales(matryoshka_vis_token_scale, len(flat))
        resolutions = budget_resolutions(asked_budgets)
        options = tile_options(resolutions, max_image_size, split_image)
        prepared = self.prepare_images(flat, max_pixels, fetch_urls, options)
        budgets = self.fill_budgets(asked_budgets, prepared.images)
        replacements = [self.image_token * count for count in self.counts(budgets, prepared.images)]
        scales = [budget.tokens for budget in budgets]
        return prepared.entries(self.reader.tiling) | {"image_scales": scales}, replacements

    def _get_num_multimodal_tokens(
        self,
        image_sizes: list[list[int]] | None = None,
        matryoshka_vis_token_scale: int | str | list[int | str] | None = None,
        max_image_size: int | list[int] | None = None,
        split_image: bool | list[bool] | None = None,
        **_: Any,
    ) -> MultiModalData:
        """Placeholders and tiles per image of (height, width), for servers that plan before they
        load (vLLM).
        """
        if image_sizes is None:
            return MultiModalData()
        sizes = [(height, width) for height, width in image_sizes]
        budgets = self.resolve_scales(matryoshka_vis_token_scale, len(sizes))
        images = self.outlines(sizes, budgets, max_image_size, split_image)
        return MultiModalData(
            num_image_tokens=self.counts(self.fill_budgets(budgets, images), images),
            num_image_patches=[tiles.number for tiles in images],
        )

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors that a call may return."""
        return [
            "input_ids",
            "attention_mask",
            "pixel_values",
            "image_scales",
            "image_tiles",
            "image_sizes",
            "tile_tokens",
            "pixel_mask",
            "image_resolutions",
        ]

    # ------------------------------------------------------------------ loading
    @classmethod
    def _get_arguments_from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        processor_dict: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        """Load the two parts; the image processor always with its PIL backend, whatever else is
        installed.
        """
        shared = {name: value for name, value in kwargs.items() if name not in _OWN_SETTINGS}
        image_processor = AutoImageProcessor.from_pretrained(
            pretrained_model_name_or_path, backend="pil", **shared
        )
        tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **shared)
        return [image_processor, tokenizer]

    @classmethod
    def from_args_and_dict(
        cls, args: list[Any], processor_dict: dict[str, Any], **kwargs: Any
    ) -> "M3Processor":
        """Build from the loaded parts and `processor_config.json`; keyword arguments of ours
        take precedence.
        """
        image_processor, tokenizer = args
        for name in processor_dict:
            if name not in (*_OWN_SETTINGS, *_FOREIGN_ENTRIES):
                raise ValueError(
                    f"processor_config.json: unknown key {name!r}; known: "
                    f"{', '.join(_OWN_SETTINGS)}"
                )
        settings = {name: processor_dict[name] for name in _OWN_SETTINGS if name in processor_dict}
        settings |= {name: kwargs[name] for name in _OWN_SETTINGS if name in kwargs}
        missing = [name for name in ("grid", "nesting") if name not in settings]
        if missing:
            raise ValueError(
                f"processor_config.json does not say {' and '.join(missing)}, so this is no M3 "
                "processor. Pass "
                f"{', '.join(f'{name}=...' for name in missing)} to from_pretrained, or convert "
                "the checkpoint first"
            )
        return cls(image_processor, tokenizer, **settings)


_OWN_SETTINGS = ("grid", "nesting", "tiling", "image_token", "chat_template")
_FOREIGN_ENTRIES = ("image_processor", "tokenizer", "processor_class", "auto_map")


def expand_image_tokens(input_ids: list[int], image_token_id: int, counts: list[int]) -> list[int]:
    """Repeat the k-th `image_token_id` in `input_ids` `counts[k]` times; tokenise once, then
    expand for each scale.
    """
    return np.repeat(
        np.asarray(input_ids, dtype=np.int64), repeats(input_ids, image_token_id, counts)
    ).tolist()


def repeats(
    input_ids: Sequence[int] | np.ndarray, image_token_id: int, counts: Sequence[int]
) -> np.ndarray:
    """Count how often each id is to be written: 1 for text, `counts[k]` for the k-th image token;
    int64, one per id.
    """
    is_image = np.asarray(input_ids, dtype=np.int64) == image_token_id
    if int(is_image.sum()) != len(counts):
        raise ValueError(
            f"the ids hold {int(is_image.sum())} image tokens, but counts for {len(counts)} images "
            "were given"
        )
    times = np.ones(len(is_image), dtype=np.int64)
    times[is_image] = counts
    return times


def _flatten(images: Images) -> list[ImageSource]:
    """One image, a list, or a list per prompt -> all images in reading order."""
    if not isinstance(images, list | tuple):
        return [cast(ImageSource, images)]
    flat: list[Any] = []
    for entry in images:
        flat += list(entry) if isinstance(entry, list | tuple) else [entry]
    return flat


def _kinds(values: Sequence[Any]) -> str:
    return "[" + ", ".join(type(value).__name__ for value in values) + "]"


def _checked_nesting(nesting: dict[str, Any]) -> dict[str, Any]:
    if set(nesting) != {"kind", "trained_scales"}:
        raise ValueError(
            "nesting needs exactly the keys kind and trained_scales, got "
            f"{', '.join(sorted(nesting)) or 'none'}"
        )
    ladder = read_ladder(nesting["trained_scales"])
    if not ladder:
        raise ValueError("nesting.trained_scales is empty; name at least one scale")
    return {"kind": nesting["kind"], "trained_scales": [budget.setting for budget in ladder]}


def _require_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in tokens if token not in vocabulary]
    if missing:
        raise ValueError(
            f"the tokenizer has no token {', '.join(missing)}. Add with "
            "tokenizer.add_tokens([...], special_tokens=True) and resize the model's embeddings, "
            "or pass the "
            "image_token and chat_template that this tokenizer was made for"
        )


def _is_text(value: object) -> bool:
    """One prompt or several; a list of addresses is as good a text as any."""
    return isinstance(value, str) or (
        isinstance(value, list | tuple) and all(isinstance(entry, str) for entry in value)
    )
