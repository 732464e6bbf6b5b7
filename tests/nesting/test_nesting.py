"""Nesting: which scales are reachable, exact values, errors.

Parametrized over the table of nestings.
"""

import pytest
import torch
from torch.nn.functional import avg_pool2d

from m3.nesting import NESTINGS, UnreachableScaleError, get_nesting, pool_grid, take_prefix

GRIDS = [144, 576, (12, 12), (12, 18), (4, 16), (5, 7), 1]


def test_m3_ladder_of_a_24x24_grid() -> None:
    assert get_nesting("grid_pool").reachable(576) == (1, 4, 9, 16, 36, 64, 144, 576)
    assert get_nesting("grid_pool").reachable((24, 24)) == (1, 4, 9, 16, 36, 64, 144, 576)
    assert get_nesting("grid_pool").reachable((12, 18)) == (1, 6, 24, 54, 216)


@pytest.mark.parametrize("scale", [100, 256, 288, 577, 0, -1, 6])
def test_unreachable_scale_lists_the_reachable(scale: int) -> None:
    with pytest.raises(
        UnreachableScaleError, match=f"scale {scale} .*1, 4, 9, 16, 36, 64, 144, 576"
    ):
        pool_grid(torch.zeros(576, 2), scale)
    with pytest.raises(ValueError, match="1, 4, 9, 16, 36, 64, 144, 576"):
        get_nesting("grid_pool").count((24, 24), scale)


@pytest.mark.parametrize("kind", NESTINGS)
@pytest.mark.parametrize("grid", GRIDS)
def test_every_reachable_scale_gives_exactly_its_count(
    kind: str, grid: int | tuple[int, int]
) -> None:
    nesting = get_nesting(kind)
    n = grid[0] * grid[1] if isinstance(grid, tuple) else grid
    scales = nesting.reachable(grid)
    assert scales == tuple(sorted(set(scales)))
    assert scales[0] == 1
    assert scales[-1] == n
    for scale in scales:
        shape = nesting.shape(grid, scale)
        assert (shape[0] * shape[1] if isinstance(shape, tuple) else shape) == scale
        assert nesting.count(grid, scale) == scale


@pytest.mark.parametrize("scale", [1, 4, 9, 16, 36, 64, 144, 576])
def test_grid_pool_equals_the_average_pooling_of_the_paper(scale: int) -> None:
    tokens = torch.randn(3, 576, 5, dtype=torch.float64)
    kernel = 24 // int(scale**0.5)
    expected = (
        avg_pool2d(tokens.transpose(1, 2).reshape(3, 5, 24, 24), kernel, kernel)
        .flatten(2)
        .transpose(1, 2)
    )
    torch.testing.assert_close(pool_grid(tokens, scale), expected, rtol=1e-12, atol=1e-12)


def test_pooling_composes() -> None:
    tokens = torch.randn(576, 4, dtype=torch.float64)
    torch.testing.assert_close(
        pool_grid(pool_grid(tokens, 144), 36), pool_grid(tokens, 36), rtol=1e-12, atol=1e-12
    )


def test_query_prefix_is_a_subset_and_refuses_more_than_there_are() -> None:
    tokens = torch.randn(2, 256, 4)
    assert torch.equal(take_prefix(tokens, 5), take_prefix(tokens, 36)[:, :5])
    with pytest.raises(
        UnreachableScaleError,
        match=r"scale 300 .* 256 tokens; choose one of 1, "
        r"\.\.\., 256",
    ):
        take_prefix(tokens, 300)


def test_errors_name_the_mistake() -> None:
    with pytest.raises(
        ValueError, match="unknown nesting kind 'pool'; known: grid_pool, query_prefix"
    ):
        get_nesting("pool")
    with pytest.raises(ValueError, match="35 tokens do not form a square grid"):
        pool_grid(torch.zeros(35, 2), 1)
    with pytest.raises(ValueError, match="a 4x4 grid has 16 tokens, but 9 were given"):
        pool_grid(torch.zeros(9, 2), 1, (4, 4))
