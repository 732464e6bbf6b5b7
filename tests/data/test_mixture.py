"""True fractions, every sample of a source once per pass, and the same order for the same seed,
however it is read.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from accelerate import skip_first_batches
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from m3.data.length_balancing import LengthWindow, read_lengths, write_lengths
from m3.data.mixture import Broken, Mixture, Positioned, pass_length
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
    assert sorted(ids(mixture)) == sorted(
        [f"a/{n}" for n in range(30)] + [f"b/{n}" for n in range(7)]
    )
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
    names = [
        name[0]
        for name in ids(Mixture([Numbered("a", 10), Numbered("b", 10)], seed=0, length=2000))
    ]
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
        item
        for batch in DataLoader(mixture, batch_size=3, num_workers=workers, collate_fn=keep)
        for item in batch
    ]
    assert loaded == list(enumerate(ids(mixture)))


@pytest.mark.parametrize(
    ("weight", "passes", "expected"),
    [
        (0.5, 1, {1: 20, 0: 20}),
        (0.5, 3, {3: 20, 0: 20}),
        (1.0, 2, {2: 40}),
        (1.5, 1, {2: 20, 1: 20}),
        (1.5, 2, {4: 20, 2: 20}),
        (2.0, 1, {2: 40}),
        (0.3, 1, {1: 12, 0: 28}),
        (2.25, 1, {3: 10, 2: 30}),
    ],
)
def test_weights_are_true_fractions(weight: float, passes: int, expected: dict[int, int]) -> None:
    """How many samples of a come how often; b comes once a pass, whatever a does.

    The part is the same in every pass.
    """
    sources, weights = [Numbered("a", 40), Numbered("b", 10)], [weight, 1.0]
    once = pass_length([40, 10], weights)
    assert once == round(40 * weight) + 10
    counts = Counter(ids(Mixture(sources, weights, seed=6, length=once * passes)))
    assert Counter(counts[f"a/{n}"] for n in range(40)) == expected
    assert {counts[f"b/{n}"] for n in range(10)} == {passes}
    assert len(Mixture(sources, weights)) == once


def test_the_half_is_the_seeds() -> None:
    halves = [frozenset(ids(Mixture([Numbered("a", 40)], [0.5], seed=seed))) for seed in (1, 1, 2)]
    assert halves[0] == halves[1] != halves[2]
    assert halves[0] != {f"a/{n}" for n in range(20)}, "a half of all, not the first half"


class Torn(Numbered):
    """A source of which every third sample cannot be read."""

    def __getitem__(self, index: int) -> Sample:
        if index % 3 == 0:
            raise ValueError(f"{self.name}, record {index}: torn")
        return super().__getitem__(index)


def test_broken_samples_are_refused_or_marked() -> None:
    with pytest.raises(ValueError, match="a, record [036]: torn"):
        ids(Mixture([Torn("a", 9)]))
    items = [Mixture([Torn("a", 9)], broken="skip")[position] for position in range(9)]
    torn = [item.sample.reason for item in items if isinstance(item.sample, Broken)]
    assert sorted(torn) == [f"a, record {n}: torn" for n in (0, 3, 6)]
    assert [item.position for item in items] == list(range(9)), "no position is lost"


def test_equal_tokens_for_every_device() -> None:
    lengths = (np.random.default_rng(0).lognormal(5, 1, 200).astype(np.int32),)
    window = LengthWindow(lengths, batch_size=4, batches=4)
    plain, dealt = (
        Mixture([Numbered("a", 200)], seed=1, length=400, window=w) for w in (None, window)
    )
    spread: dict[str, list[float]] = {"plain": [], "dealt": []}
    for start in range(0, 400, 16):
        steps = [
            [mixture.record_at(p)[1] for p in range(start, start + 16)]
            for mixture in (plain, dealt)
        ]
        assert sorted(steps[0]) == sorted(steps[1]), "no sample changes its step"
        for name, step in zip(spread, steps, strict=True):
            sums = lengths[0][step].reshape(4, 4).sum(axis=1)
            spread[name].append(float(sums.max() / sums.mean()))
    assert np.mean(spread["plain"]) > 1.3
    assert np.mean(spread["dealt"]) < 1.1
    backwards = Mixture([Numbered("a", 200)], seed=1, length=400, window=window)
    assert [backwards.record_at(p) for p in reversed(range(400))][::-1] == [
        dealt.record_at(p) for p in range(400)
    ]


def test_a_last_short_window_is_left_alone() -> None:
    window = LengthWindow((np.arange(10, dtype=np.int32),), batch_size=2, batches=2)
    mixtures = [Mixture([Numbered("a", 10)], seed=1, window=w) for w in (None, window)]
    assert [mixture.record_at(9) for mixture in mixtures] == [mixtures[0].record_at(9)] * 2
    assert sorted(ids(mixtures[1])) == sorted(ids(mixtures[0]))


def test_lengths_are_kept_with_the_names_of_their_sources(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lengths.npz"
    lengths = (np.asarray([1, 2, -1], dtype=np.int32), np.asarray([7], dtype=np.int32))
    write_lengths(path, lengths, ["a", "b"])
    assert [found.tolist() for found in read_lengths(path, ["a", "b"])] == [[1, 2, -1], [7]]
    with pytest.raises(
        ValueError,
        match=r"holds the lengths of a, b; expected those of a\. "
        r"Measure them again with",
    ):
        read_lengths(path, ["a"])
    with pytest.raises(
        ValueError,
        match=r"nowhere: no such file; `m3 data check RECIPE --lengths .*nowhere` "
        r"writes it",
    ):
        read_lengths(tmp_path / "nowhere", ["a"])
    for content in (b"PK\x03\x04 cut", b"no archive", b""):
        (tmp_path / "broken").write_bytes(content)
        with pytest.raises(
            ValueError,
            match="broken: not a file of lengths, or damaged .*--lengths .*broken` writes one",
        ):
            read_lengths(tmp_path / "broken", ["a"])
    np.save(tmp_path / "one.npy", np.arange(3))
    with pytest.raises(ValueError, match="one.npy: not a file of lengths"):
        read_lengths(tmp_path / "one.npy", ["a"])
    with pytest.raises(
        ValueError,
        match=r"data\.lengths counts \[3, 1\] samples, the sources hold "
        r"\[3, 2\]",
    ):
        Mixture([Numbered("a", 3), Numbered("b", 2)], window=LengthWindow(lengths, 1, 1))


def stream(
    world_size: int, workers: int, window: LengthWindow | None, skipped: int = 0
) -> list[tuple[int, str]]:
    """What all ranks together read, batch k of rank r at place k * world_size + r; 8 samples a
    step in all.
    """
    mixture = Mixture(
        [Numbered("a", 30), Numbered("b", 30)], [1.0, 0.5], seed=7, length=48, window=window
    )
    batches: dict[int, list[tuple[int, str]]] = {}
    for rank in range(world_size):
        sampler = BatchSampler(SequentialSampler(mixture), 8 // world_size, drop_last=False)
        shard = BatchSamplerShard(sampler, world_size, rank)
        loader = DataLoader(mixture, batch_sampler=shard, num_workers=workers, collate_fn=keep)
        for number, batch in enumerate(skip_first_batches(loader, skipped)):
            batches[number * world_size + rank] = batch
    return [item for number in sorted(batches) for item in batches[number]]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("dealt", [False, True])
def test_one_order_however_it_is_read(world_size: int, workers: int, dealt: bool) -> None:
    """With lengths, devices share a step differently, but the step's samples stay; without,
    everything is equal.
    """
    lengths = tuple(np.random.default_rng(n).integers(1, 100, 30, dtype=np.int32) for n in (0, 1))
    window = LengthWindow(lengths, 8 // world_size, world_size) if dealt else None
    found, plain = stream(world_size, workers, window), stream(1, 0, None)
    assert [position for position, _ in found] == list(range(48))
    for start in range(0, 48, 8):
        step, expected = (
            [name for _, name in order[start : start + 8]] for order in (found, plain)
        )
        assert sorted(step) == sorted(expected)
        assert dealt or step == expected
    assert stream(world_size, workers, window, skipped=2) == found[16:], (
        "resuming skips, and reads the same"
    )


def test_skipping_reads_nothing() -> None:
    """A resumed run pays for the numbers of the samples that it skips, not for the samples."""
    seen: list[int] = []

    class Watched(Numbered):
        def __getitem__(self, index: int) -> Sample:
            seen.append(index)
            return super().__getitem__(index)

    loader = DataLoader(Mixture([Watched("a", 1000)]), batch_size=10, collate_fn=keep)
    rest = list(skip_first_batches(loader, 99))
    assert len(rest) == 1
    assert len(seen) == 10


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
    with pytest.raises(
        ValueError,
        match=r"source 0: 0\.1 of 3 samples is no sample\. Raise the "
        r"weight",
    ):
        Mixture([a], [0.1])
    with pytest.raises(ValueError, match="got length=0"):
        Mixture([a], length=0)
    with pytest.raises(IndexError, match="position 3 of a mixture of 3"):
        Mixture([a])[3]
