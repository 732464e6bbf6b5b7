"""Nothing is lost, nothing is cut, no row is overfull, and little room is wasted."""

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
    if max_images is None and rows:
        # What longest first into the emptiest guarantees: the fullest row has at most one sequence
        # more than any other.
        filled = [sum(lengths[number] for number in row) for row in rows]
        fullest = rows[filled.index(max(filled))]
        assert max(filled) - min(filled) <= min(lengths[number] for number in fullest)
    assert rows == pack(lengths, images, max_length, max_images)


def test_the_longest_goes_into_the_emptiest_row() -> None:
    assert pack([40, 100, 60, 90, 10], [()] * 5, 150) == [[1, 0, 4], [3, 2]]


@pytest.mark.parametrize("pack_length", [4096, 8192])
@pytest.mark.parametrize("batch_size", [4, 8])
@pytest.mark.parametrize("mean", [60, 150, 300, 500])
def test_rows_are_filled_on_lengths_as_in_llava(
    pack_length: int, batch_size: int, mean: int
) -> None:
    """Lognormal text lengths, five scales of an image each; rows are padded to the fullest, and
    that to a multiple of 8.
    """
    random = np.random.default_rng(mean)
    fills = []
    for _ in range(50):
        texts = np.minimum(
            random.lognormal(np.log(mean) - 0.32, 0.8, batch_size).astype(int) + 8, 2048
        )
        lengths = [int(text) + scale for text in texts for scale in (576, 144, 36, 9, 1)]
        images = [(number,) for number in range(batch_size) for _ in range(5)]
        rows = pack(lengths, images, pack_length)
        longest = max(sum(lengths[number] for number in row) for row in rows)
        fills.append(sum(lengths) / (len(rows) * -(-longest // 8) * 8))
    assert np.mean(fills) >= 0.97


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
