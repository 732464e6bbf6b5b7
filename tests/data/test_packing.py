"""Nothing is lost, nothing is cut, no row is overfull, and little room is wasted."""

import itertools

import numpy as np
import pytest

from m3.data.packing import pack


@pytest.mark.parametrize("seed", range(60))
def test_random_cases(seed: int) -> None:
    random = np.random.default_rng(seed)
    count, max_length = int(random.integers(0, 80)), int(random.integers(10, 400))
    lengths = random.integers(1, max_length + 1, count).tolist()
    images = [tuple(random.integers(0, 12, random.integers(0, 4)).tolist()) for _ in range(count)]
    max_images = None if seed % 3 == 0 else int(random.integers(3, 8))
    rows = pack(lengths, images, max_length, max_images)
    assert sorted(number for row in rows for number in row) == list(range(count))
    for row in rows:
        assert row
        assert sum(lengths[number] for number in row) <= max_length
        if max_images is not None:
            assert len({image for number in row for image in images[number]}) <= max_images
    if max_images is None:
        # What first fit guarantees: no two rows could have shared one.
        filled = sorted(sum(lengths[number] for number in row) for row in rows)
        assert all(a + b > max_length for a, b in itertools.pairwise(filled))
    assert rows == pack(lengths, images, max_length, max_images)


def test_short_sequences_fill_what_long_ones_leave() -> None:
    assert pack([40, 100, 60, 90, 10], [()] * 5, 100) == [[1], [3, 4], [2, 0]]


def test_an_image_counts_once_per_row_however_often_it_is_read() -> None:
    images = [(0,), (0,), (0,), (1,), (1,)]
    assert pack([10] * 5, images, 100, max_images=1) == [[0, 1, 2], [3, 4]]
    assert pack([10] * 5, images, 100, max_images=2) == [[0, 1, 2, 3, 4]]


def test_empty() -> None:
    assert pack([], [], 10) == []


def test_what_fits_no_row_is_refused() -> None:
    with pytest.raises(ValueError, match="sequence 1 has 11 tokens; a row holds 10"):
        pack([10, 11], [(), ()], 10)
    with pytest.raises(ValueError, match="sequence 0 shows 2 images; a row may show 1"):
        pack([5], [(0, 1, 0)], 10, max_images=1)
    with pytest.raises(ValueError, match="2 lengths but image sets for 1 sequences"):
        pack([5, 5], [()], 10)
