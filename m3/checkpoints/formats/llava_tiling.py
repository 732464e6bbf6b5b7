"""LLaVA-NeXT's settings of any resolution: the original's words for them beside ours, read both
ways.

Original: `llava/mm_utils.py` (`process_anyres_image`) and `llava/model/llava_arch.py`
(`mm_patch_merge_type`) of haotian-liu/LLaVA. Its resolutions are (width, height) where ours and
transformers' are (height, width); among equals the first is taken, so swapping each and keeping
their order is exact. Its unpadding truncates, transformers' rounds first.
"""

import ast
from collections.abc import Mapping
from typing import Any

from m3.nesting import SingleTile, Tiling, make_tiling

KINDS: Mapping[tuple[str, str], str] = {
    ("pad", "flat"): "single",
    ("anyres", "spatial_unpad"): "anyres",
    ("anyres", "flat"): "tiles",
}
"""(image_aspect_ratio, mm_patch_merge_type) -> kind of tiling."""
ROUNDING = "truncate"


def read_tiling(config: Mapping[str, Any], side: int) -> Tiling:
    """From the original's `config.json`; `side`: pixels of a tile, which are those of the
    tower's images.
    """
    chosen_kind = (
        str(config.get("image_aspect_ratio")),
        str(config.get("mm_patch_merge_type", "flat")),
    )
    if chosen_kind not in KINDS:
        known_kinds = "; ".join(f"{aspect} with {merge}" for aspect, merge in KINDS)
        raise ValueError(
            f"image_aspect_ratio is {chosen_kind[0]!r} and mm_patch_merge_type {chosen_kind[1]!r}; "
            f"this format is read with {known_kinds}"
        )
    if KINDS[chosen_kind] == "single":
        return SingleTile()
    given_pinpoints = config.get("image_grid_pinpoints")
    try:
        pinpoints: Any = (
            ast.literal_eval(given_pinpoints)
            if isinstance(given_pinpoints, str)
            else given_pinpoints
        )
        turned = [(int(height), int(width)) for width, height in pinpoints]
    except (SyntaxError, TypeError, ValueError) as error:
        raise ValueError(
            f"image_grid_pinpoints is {given_pinpoints!r}; image_aspect_ratio anyres is read with "
            "pairs such as [[336, 672], [672, 336]]"
        ) from error
    settings = {"kind": KINDS[chosen_kind], "tile_size": side, "grid_pinpoints": turned}
    return make_tiling(settings | {"unpad_rounding": ROUNDING})


def write_tiling(tiling: Tiling) -> dict[str, Any]:
    """The original's settings of a tiling that it can hold (`problems` is empty)."""
    aspect, merge = next(
        kind_names for kind_names, tiling_kind in KINDS.items() if tiling_kind == tiling.kind
    )
    pinpoints = tiling.to_dict().get("grid_pinpoints", [])
    turned = [[width, height] for height, width in pinpoints]
    return {
        "image_aspect_ratio": aspect,
        "mm_patch_merge_type": merge,
        "image_grid_pinpoints": turned or None,
    }


def problems(tiling: Tiling, rounding: str) -> dict[str, bool]:
    """Properties of a tiling that a LLaVA format which rounds as `rounding` cannot hold."""
    settings, known_kinds = tiling.to_dict(), list(KINDS.values())
    used_rounding = settings.get("unpad_rounding", rounding)
    return {
        f"the tiling {tiling.kind} ({', '.join(known_kinds)} are)": tiling.kind not in known_kinds,
        f"tiling {tiling.kind} without grid_pinpoints": settings.get("grid_pinpoints") == [],
        f"unpad_rounding {used_rounding}, since its code is {rounding} (a few image sizes "
        "in 10 000 would get other "
        "tokens; change tiling.unpad_rounding in config.json and processor_config.json to take "
        "that)": used_rounding != rounding,
    }
