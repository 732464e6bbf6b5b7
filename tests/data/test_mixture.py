"""True fractions, every sample of a source once per pass, and the same order for the same seed, however it is read."""

from collections import Counter

import pytest
from torch.utils.data import DataLoader

from m3.data.mixture import Mixture, Positioned
from m3.data.sample import Sample, Turn


class Numbered:
    """A source of `size` samples called `name/0`, `name/1`, ..."""

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        return Sample(f"{self.name}/{index}", (), (Turn("user", "a"), Turn("assistant", "b")))


def ids(mixture: Mixture) -> list[str]:
    return [mixture[position].sample.id for position in range(len(mixture))]


def test_without_weights_everything_comes_once() -> None:
    mixture = Mixture([Numbered("a", 30), Numbered("b", 7)], seed=1)
    assert sorted(ids(mixture)) == sorted([f"a/{n}" for n in range(30)] + [f"b/{n}" for n in range(7)])
    assert ids(mixture) != sorted(ids(mixture))


@pytest.mark.parametrize("weights", [(0.7, 0.2, 0.1), (1, 1, 1), (3, 0, 1)])
@pytest.mark.parametrize("length", [1, 10, 101, 1000])
def test_fractions_are_exact_to_within_one(weights: tuple[float, ...], length: int) -> None:
    mixture = Mixture([Numbered(name, 40) for name in "abc"], weights, seed=2, length=length)
    counts = Counter(name.split("/")[0] for name in ids(mixture))
    assert sum(counts.values()) == length
    for name, weight in zip("abc", weights, strict=True):
        assert abs(counts[name] - length * weight / sum(weights)) < 1


def test_sources_are_spread_over_the_whole_length() -> None:
    names = [name[0] for name in ids(Mixture([Numbered("a", 10), Numbered("b", 10)], seed=0, length=2000))]
    halves = [names[:1000].count("a"), names[1000:].count("a")]
    assert sum(halves) == 1000
    assert abs(halves[0] - halves[1]) < 130  # 4 standard deviations


def test_every_sample_once_before_any_comes_twice() -> None:
    order = ids(Mixture([Numbered("a", 12)], seed=5, length=30))
    passes = [order[:12], order[12:24], order[24:]]
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(f"a/{n}" for n in range(12))
    assert len(set(passes[2])) == 6
    assert passes[0] != passes[1]


def test_order_is_the_seeds() -> None:
    sources = [Numbered("a", 50), Numbered("b", 50)]
    assert ids(Mixture(sources, seed=3)) == ids(Mixture(sources, seed=3))
    assert ids(Mixture(sources, seed=3)) != ids(Mixture(sources, seed=4))


def keep(batch: list[Positioned]) -> list[tuple[int, str]]:
    return [(item.position, item.sample.id) for item in batch]


@pytest.mark.parametrize("workers", [0, 2])
def test_position_travels_with_the_sample(workers: int) -> None:
    mixture = Mixture([Numbered("a", 20)], seed=0)
    loaded = [
        item for batch in DataLoader(mixture, batch_size=3, num_workers=workers, collate_fn=keep) for item in batch
    ]
    assert loaded == list(enumerate(ids(mixture)))


def test_mistakes() -> None:
    a = Numbered("a", 3)
    with pytest.raises(ValueError, match="needs at least one source"):
        Mixture([])
    with pytest.raises(ValueError, match="source 1 of the mixture is empty; leave it out"):
        Mixture([a, Numbered("b", 0)])
    with pytest.raises(ValueError, match="1 weights for 2 sources"):
        Mixture([a, a], [1.0])
    with pytest.raises(ValueError, match="not be negative and not all zero"):
        Mixture([a, a], [1.0, -1.0])
    with pytest.raises(ValueError, match="not be negative and not all zero"):
        Mixture([a], [0.0])
    with pytest.raises(ValueError, match="got length=0"):
        Mixture([a], length=0)
    with pytest.raises(IndexError, match="position 3 of a mixture of 3"):
        Mixture([a])[3]
