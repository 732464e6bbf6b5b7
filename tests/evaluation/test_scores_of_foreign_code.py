"""What a task's code gives as scores and pictures: every kind of number, and documents that
share pictures.
"""

from decimal import Decimal
from fractions import Fraction

import networkx
import numpy as np
import pytest
import torch

from m3.digest import digest
from m3.evaluation.harness.scoring import per_document, reported
from m3.evaluation.results.foreign_numbers import as_number
from m3.evaluation.results.samples import picture_clusters
from m3.evaluation.results.store import Answer, Cell

NUMBERS = [
    *(
        True,
        1,
        1.0,
        Fraction(1),
        Decimal(1),
        np.bool_(True),
        np.int64(1),
        np.uint8(1),
        np.float16(1),
        np.float32(1),
    ),
    *(
        np.float64(1),
        np.array(1),
        torch.tensor(1),
        torch.tensor(True),
        torch.tensor(1.0, dtype=torch.bfloat16),
    ),
]


@pytest.mark.parametrize("value", NUMBERS, ids=lambda value: f"{type(value).__name__}")
def test_scalars_of_every_kind_are_numbers(value: object):
    number = as_number(value)
    assert number == 1.0 and type(number) is float
    assert reported({"acc,none": value}) == {"acc": 1.0}
    assert (
        per_document({"acc": value}, ["acc"])
        == per_document({"acc": {"score": value}}, ["acc"])
        == {"acc": 1.0}
    )


@pytest.mark.parametrize(
    "value",
    ["1", None, [1], np.ones(1), torch.ones(1), 1j, np.str_("1"), {"score": "1"}, np.ma.masked],
)
def test_what_is_no_number_is_named(value: object, caplog: pytest.LogCaptureFixture):
    assert as_number(value) is None
    assert reported({"acc,none": value, "acc_stderr,none": "N/A", "other,none": 2}) == {
        "other": 2.0
    }
    assert "for acc,none, which is no finite number: the metric has no row" in caplog.text
    assert per_document({"acc": value}, ["acc"]) == {}


@pytest.mark.parametrize(
    "value", [float("nan"), np.float32("inf"), torch.tensor(float("nan")), Decimal("NaN")]
)
def test_what_is_not_finite_is_named(value: object, caplog: pytest.LogCaptureFixture):
    assert reported({"acc,none": value}) == {} and "no finite number" in caplog.text
    assert per_document({"acc": value}, ["acc"]) == {}


def answer(document: int, images: tuple[str, ...]) -> Answer:
    cell = Cell("w", "t", "d", str(document), "p", 1, "grid_pool")
    return Answer(cell, "task", document, "", None, 1, 1, 1, 0.0, images)


def test_the_key_is_the_digest_of_all_fields():
    cell = answer(3, ()).cell
    fields = {
        "weights": "w",
        "task": "t",
        "dataset": "d",
        "document": "3",
        "prompt": "p",
        "scale": 1,
    }
    assert (
        cell.key
        == digest({**fields, "method": "grid_pool", "code": ""})
        == "1924d192ebf90b72e0bb3293"
    )


def test_documents_that_share_a_picture_are_one_cluster():
    images = [("a", "b"), ("b", "a"), ("a",), (), (), ("c", "d"), ("e",), ("d", "e"), ("f", "f")]
    found = picture_clusters([answer(i, of) for i, of in enumerate(images)])
    assert found == [0, 0, 0, 1, 2, 3, 3, 3, 4]


def test_clusters_are_connected_components():
    rng = np.random.default_rng(0)
    for _ in range(50):
        images = [tuple(map(str, rng.integers(0, 40, rng.integers(0, 4)))) for _ in range(30)]
        graph = networkx.Graph()
        for document, of in enumerate(images):
            graph.add_node(document)
            graph.add_edges_from((document, name) for name in of)
        components = [
            {node for node in part if isinstance(node, int)}
            for part in networkx.connected_components(graph)
        ]
        found = picture_clusters([answer(i, of) for i, of in enumerate(images)])
        ours = [
            {i for i, cluster in enumerate(found) if cluster == number} for number in set(found)
        ]
        assert sorted(map(sorted, ours)) == sorted(map(sorted, filter(None, components)))
