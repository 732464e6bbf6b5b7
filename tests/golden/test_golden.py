"""Results and texts that only a change which says so may change, to the last digit where the
machine rounds alike.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.golden.recording import NUMBERS, RECORDINGS, RECORDS, record_machine

ELSEWHERE = 1e-4
"""Largest relative difference on a processor or a torch that rounds differently; twenty steps
add up.
"""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums are added up in another order by several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def compare(name: str, recorded: Any, computed: Any, tolerance: float) -> None:
    """Equal structure, equal texts, and numbers within a relative tolerance."""
    if isinstance(recorded, dict):
        assert list(recorded) == list(computed), name
        for key, value in recorded.items():
            compare(f"{name} {key}", value, computed[key], tolerance)
    elif isinstance(recorded, list):
        assert len(recorded) == len(computed), name
        for number, value in enumerate(recorded):
            compare(f"{name} {number}", value, computed[number], tolerance)
    elif isinstance(recorded, float) and tolerance:
        assert computed == pytest.approx(recorded, rel=tolerance, abs=tolerance), name
    elif isinstance(recorded, str) and tolerance and is_number(recorded):
        assert float(computed) == pytest.approx(float(recorded), rel=tolerance, abs=tolerance), name
    else:
        assert computed == recorded, name


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_record_is_reproduced(name: str, tmp_path: Path) -> None:
    there, here = json.loads((RECORDS / "machine.json").read_text()), record_machine()
    if name == "help" and here["python"] != there["python"]:
        pytest.skip("other versions of Python lay out help texts differently")
    rounds_alike = (here["kernels"], here["torch"]) == (there["kernels"], there["torch"])
    recorded = json.loads((RECORDS / f"{name}.json").read_text())
    computed = json.loads(json.dumps(RECORDINGS[name](tmp_path)))
    compare(name, recorded, computed, ELSEWHERE if name in NUMBERS and not rounds_alike else 0.0)
