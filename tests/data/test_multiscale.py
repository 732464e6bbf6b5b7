"""One sequence per scale, weighted so that the weighted mean is M3's average; the same draw on
every rank.
"""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from m3.data.multiscale import IGNORED, draw_budgets, expand
from m3.data.sample import Sample
from m3.data.tokenized import tokenize_sample
from m3.nesting import Budget, Tiles, read_ladder
from m3.processing import M3Processor

TRAINED = read_ladder((1, 4, 9, 36, 144))


@pytest.mark.parametrize("shades", [(1,), (1, 2), (1, 2, 3)])
@pytest.mark.parametrize(
    ("kind", "scales"), [("grid_pool", (1, 4, 9, 36, 144)), ("query_prefix", (2, 17, 100))]
)
def test_expansion(
    kind: str,
    scales: tuple[int, ...],
    shades: tuple[int, ...],
    make_processor: Callable[..., M3Processor],
    make_sample: Callable[..., Sample],
) -> None:
    processor = make_processor(nesting={"kind": kind, "trained_scales": list(scales)})
    tokenized = tokenize_sample(make_sample("a", shades, ("red", "two words")), processor)
    sequences = expand(tokenized, read_ladder(scales), processor, {None: [Tiles()] * len(shades)})
    text = [token for token in tokenized.input_ids if token != processor.image_token_id]
    answers = [
        token
        for token, kept in zip(tokenized.input_ids, tokenized.labels_mask, strict=True)
        if kept
    ]
    assert len(sequences) == len(scales)
    for sequence, scale in zip(sequences, scales, strict=True):
        is_image = sequence.input_ids == processor.image_token_id
        assert is_image.sum() == scale * len(shades)
        assert sequence.input_ids[~is_image].tolist() == text
        assert sequence.labels[sequence.labels != IGNORED].tolist() == answers
        assert (sequence.labels == IGNORED)[is_image].all()
        assert (sequence.labels == sequence.input_ids)[sequence.labels != IGNORED].all()
        assert sequence.scales == (scale,) * len(shades)
        assert sequence.images == tuple(range(len(shades)))
        assert sequence.weight == pytest.approx(1 / len(scales))


def test_text_only_goes_in_once(processor: M3Processor, make_sample: Callable[..., Sample]) -> None:
    (sequence,) = expand(tokenize_sample(make_sample("a"), processor), TRAINED, processor, {})
    assert (sequence.weight, sequence.scales, sequence.images) == (1.0, (), ())


def test_weights_add_up(processor: M3Processor, make_sample: Callable[..., Sample]) -> None:
    tokenized = tokenize_sample(make_sample("a", (1,)), processor)
    assert sum(
        sequence.weight
        for sequence in expand(tokenized, TRAINED, processor, {None: [Tiles()]}, weight=0.5)
    ) == pytest.approx(0.5)


def test_unreachable_and_no_scales(
    processor: M3Processor, make_sample: Callable[..., Sample]
) -> None:
    tokenized = tokenize_sample(make_sample("a", (1,)), processor)
    with pytest.raises(ValueError, match="scale 5 cannot be reached"):
        expand(tokenized, (Budget(1), Budget(5)), processor, {None: [Tiles()]})
    with pytest.raises(ValueError, match="no scales to expand to"):
        expand(tokenized, (), processor, {None: [Tiles()]})


# ---------------------------------------------------------------------- the draw
def test_all_and_unknown() -> None:
    assert draw_budgets("all", read_ladder((9, 1, 4)), 0, 7) == read_ladder((1, 4, 9))
    with pytest.raises(ValueError, match="no trained scales"):
        draw_budgets("all", (), 0, 0)


def test_random_draws_every_scale_equally_often() -> None:
    drawn = Counter(draw_budgets("random", TRAINED, seed=3, step=step) for step in range(2000))
    assert sorted(drawn) == [(scale,) for scale in TRAINED]
    assert all(330 < count < 470 for count in drawn.values()), drawn  # 400 +- 4 standard deviations


@pytest.mark.parametrize("between", [0, 1, 2, 9])
def test_sandwich_holds_both_ends(between: int) -> None:
    drawn = [draw_budgets("sandwich", TRAINED, 0, step, between) for step in range(300)]
    expected = min(between, 3) + 2
    assert all(
        (scales[0], scales[-1], len(scales)) == (TRAINED[0], TRAINED[-1], expected)
        for scales in drawn
    )
    assert all(list(scales) == sorted(set(scales)) for scales in drawn)
    middles = Counter(scale for scales in drawn for scale in scales[1:-1])
    assert set(middles) == (set(TRAINED[1:-1]) if between else set())


def test_sandwich_of_few_scales() -> None:
    assert draw_budgets("sandwich", TRAINED[2:3], 0, 0) == TRAINED[2:3]
    assert draw_budgets("sandwich", TRAINED[:2], 0, 0) == TRAINED[:2]


def test_the_draw_is_fixed_for_ever() -> None:
    """Written down, so that no library and no refactoring can change what a resumed run draws."""
    assert [draw_budgets("random", TRAINED, 0, n)[0].tokens for n in range(8)] == FIXED_RANDOM
    assert [
        draw_budgets("sandwich", TRAINED, 0, n, 1)[1].tokens for n in range(8)
    ] == FIXED_SANDWICH
    assert (
        np.mean(
            [
                draw_budgets("random", TRAINED, 0, s) != draw_budgets("random", TRAINED, 1, s)
                for s in range(200)
            ]
        )
        > 0.6
    )


FIXED_RANDOM = [36, 144, 144, 36, 1, 36, 9, 9]
FIXED_SANDWICH = [36, 36, 36, 36, 4, 36, 9, 9]
