"""Which captioned images are worth learning from: what mllm-npu's caption data is filtered by,
decided once, at the start.

in: a sample of a tar and a recipe's `filters`; out: the name of the filter that leaves it out, or
    None.
"""

import math

from m3.data.formats.files import parse_json
from m3.data.formats.tar_index import Group, Member
from m3.data.recipe import Filters
from m3.processing.images import image_size

SCORES = ("similarity", "score")
"""Keys of a record that say how well caption and image fit; the first that is there counts."""
HEAD = 1 << 16
"""Bytes of an image that are read for its size; all of them where the header is longer."""


def left_out_by(group: Group, filters: Filters) -> str | None:
    """The first filter that the sample fails.

    Raises:
        ValueError: the sample has no similarity although one is asked for, or its image has no
            readable header.
    """
    if filters.min_similarity is not None and _similarity(group) < filters.min_similarity:
        return "min_similarity"
    images = group.images()
    if not images or (filters.min_resolution, filters.max_aspect_ratio) == (None, None):
        return None
    short, long = sorted(_size(group, images[0]))
    if filters.min_resolution is not None and short < filters.min_resolution:
        return "min_resolution"
    if filters.max_aspect_ratio is not None and long > filters.max_aspect_ratio * short:
        return "max_aspect_ratio"
    return None


def _similarity(group: Group) -> float:
    for member in group.find("json"):
        record = parse_json(group.read(member), group.where)
        found = [record[key] for key in SCORES if key in record] if isinstance(record, dict) else []
        if (
            found
            and isinstance(found[0], int | float)
            and not isinstance(found[0], bool)
            and math.isfinite(found[0])
        ):
            return float(found[0])
    raise ValueError(
        f"{group.where}: filters.min_similarity asks for a number under {' or '.join(SCORES)} in "
        "its .json, and there is none"
    )


def _size(group: Group, image: Member) -> tuple[int, int]:
    try:
        return image_size(group.read(image, HEAD))
    except ValueError as error:
        if image.size <= HEAD:
            raise ValueError(f"{group.where}: {error}") from error
    try:
        return image_size(group.read(image))
    except ValueError as error:
        raise ValueError(f"{group.where}: {error}") from error
