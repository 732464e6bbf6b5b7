"""The estimate on numbers worked out by hand."""

from dataclasses import replace

import pytest

from m3.evaluation.cost.roofline import roofline
from m3.hardware import ACCELERATORS, Accelerator, accelerator
from m3.model.cost import Cost

COST = Cost(
    scale=9, batch_size=1, itemsize=2, visual_tokens=9, text_tokens=30,
    vision_flops=400, connector_flops=10, prefill_flops=1000, token_flops=20,
    kv_cache_bytes=50, vision_parameter_bytes=30, connector_parameter_bytes=20,
    prefill_parameter_bytes=150, token_parameter_bytes=100,
)  # fmt: skip
DEVICE = Accelerator(
    "made up", flops=100.0, bandwidth=10.0, memory_bytes=1000.0, source="this test"
)


def test_each_stage_takes_the_longer_of_computing_and_reading():
    found = roofline(COST, DEVICE)
    # tower: max(4, 3); connector: max(0.1, 2); prefill: max(10, 20); token: max(0.2, 15)
    assert found.first_token_s == pytest.approx(4 + 2 + 20)
    assert found.token_s == pytest.approx(15)
    assert not found.is_compute_bound
    long = roofline(replace(COST, prefill_flops=3000), DEVICE)
    assert long.first_token_s == pytest.approx(4 + 2 + 30)
    assert long.is_compute_bound
    assert long.accelerator == "made up"


def test_the_table_is_in_plain_units():
    assert {"H100", "H200", "A100", "910B"} <= set(ACCELERATORS)
    for row in ACCELERATORS.values():
        assert 1e14 < row.flops < 1e16
        assert 5e11 < row.bandwidth < 1e13
        assert 1e10 < row.memory_bytes < 1e12
        assert row.source
    # the same chip with other memory
    assert ACCELERATORS["H200"].flops == ACCELERATORS["H100"].flops
    with pytest.raises(
        ValueError, match="no accelerator 'H300' in the table; known: V100, A100, .*, 910B"
    ):
        accelerator("H300")
