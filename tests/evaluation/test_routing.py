"""Expert load and routing entropy: a routing worked out by hand, the model's own load, through a
sweep to the report.
"""

import csv
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import DECODERS, IMAGE, MOE, make_model, prompt

from m3.evaluation.analysis.summary import Summary
from m3.evaluation.answering.decoding import Decoding
from m3.evaluation.answering.engine import Engine
from m3.evaluation.answering.expert_routing import Routing, count, is_recorded, recording
from m3.evaluation.answering.questions import Reply
from m3.evaluation.report import command as report
from m3.evaluation.report.expert_load import routing_table
from m3.evaluation.results.run_folder import write_json
from m3.evaluation.results.store import Store
from tests.evaluation.conftest import SWEPT, make_run, save_model
from tests.evaluation.test_engine import ask
from tests.evaluation.test_report import page_json
from tests.evaluation.test_sweep import keys_of, run_sweep

SHORT = Decoding(max_new_tokens=3)
HALVES = [[1 / 2, 1 / 4, 1 / 8, 1 / 8], [1 / 4, 1 / 2, 1 / 8, 1 / 8], [1 / 8, 1 / 8, 1 / 2, 1 / 4]]


def by_hand() -> Routing:
    """Two visual tokens that choose experts 0 and 1, a text token that chooses 2 and 3, and a
    token of padding.
    """
    logits = torch.tensor([[*HALVES, [1.0, 1.0, 1.0, 1.0]]]).log()
    is_kind = torch.tensor([[[True, True, False, False]], [[False, False, True, False]]])
    (found,) = count([logits, logits.flip(-1)], is_kind, top_k=2)
    return found


def test_a_routing_worked_out_by_hand():
    found = by_hand()
    assert found.tokens.tolist() == [2, 1]
    assert found.choices.tolist() == [[[2, 2, 0, 0], [0, 0, 2, 2]], [[0, 0, 1, 1], [1, 1, 0, 0]]]
    assert found.load(0).tolist() == [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]
    assert found.busiest(0).tolist() == [2.0, 2.0]  # four experts, half of the choices
    assert found.spread(0) == pytest.approx([0.5, 0.5])  # ln 2 / ln 4
    assert found.undecided(0) == pytest.approx([0.875] * 2)  # 7/4 ln 2 / ln 4
    assert found.undecided(1) == pytest.approx([0.875] * 2)


def test_routings_add_up_and_survive_the_store():
    found = by_hand() + by_hand()
    assert (found.tokens.tolist(), found.choices[0, 0].tolist()) == ([4, 2], [4, 4, 0, 0])
    assert found.undecided(0) == pytest.approx([0.875] * 2)
    back = Routing.decoded(found.encoded())
    assert np.array_equal(back.choices, found.choices) and np.array_equal(back.tokens, found.tokens)
    assert back.entropy == pytest.approx(found.entropy)
    blind = Routing(
        found.choices * np.array([0, 1])[:, None, None], found.entropy, np.array([0, 2])
    )
    assert np.isnan(blind.load(0)).all() and math.isnan(blind.undecided(0)[0])


@pytest.mark.parametrize("decoder", MOE)
def test_the_load_is_what_the_model_itself_calls_load(decoder: str):
    model = make_model(decoder=decoder)
    ids = torch.tensor([prompt(9, 7, 8, 9)])
    inputs = {
        "input_ids": ids,
        "pixel_values": torch.randn(1, 3, 48, 48),
        "image_scales": torch.tensor([9]),
    }
    with torch.no_grad():
        model(**inputs, labels=ids)  # transformers hangs hooks of its own on the routers, once
    before = [len(router._forward_hooks) for router in model.model.routers]
    with torch.no_grad(), recording(model, 1) as recorded:
        output = model(**inputs, labels=ids)
    (found,) = recorded.routings(
        torch.stack([ids == IMAGE, ids != IMAGE]), model.model.router_top_k
    )
    assert found.tokens.tolist() == [9, ids.shape[1] - 9]
    whole = found.choices.sum(0) / found.choices.sum((0, 2))[:, None]
    assert whole == pytest.approx(output.expert_load.numpy(), abs=1e-6)
    assert [len(router._forward_hooks) for router in model.model.routers] == before


@pytest.mark.parametrize("decoder", sorted(set(DECODERS) - set(MOE)))
def test_a_dense_decoder_has_no_routers(decoder: str):
    assert make_model(decoder=decoder).model.routers == []


def routed(
    engine: Engine, decoding: Decoding = SHORT, continuation: str | None = None
) -> list[Reply]:
    """Every second question is recorded; scales and lengths are mixed in one batch."""
    questions = [
        ask(engine, index, scale, decoding, continuation)
        for index, scale in enumerate((1, 9, 36, 4))
    ]
    questions = [replace(one, is_routed=index % 2 == 0) for index, one in enumerate(questions)]
    found = {index: reply for batch in engine.answer(questions, 4) for index, reply in batch}
    return [found[index] for index in range(len(questions))]


def test_padding_beams_and_continuations_are_not_counted(engine: Engine):
    alone = {}
    for index, scale in ((0, 1), (2, 36)):
        question = replace(ask(engine, index, scale, Decoding(max_new_tokens=3)), is_routed=True)
        ((_, reply),) = [one for batch in engine.answer([question], 1) for one in batch]
        alone[index] = Routing.decoded(reply.routing)
        assert alone[index].tokens.tolist() == [reply.visual_tokens, reply.text_tokens]
    beams = Decoding(max_new_tokens=3, num_beams=3)
    for replies in (routed(engine), routed(engine, beams), routed(engine, continuation="green")):
        assert [reply.routing is not None for reply in replies] == [True, False, True, False]
        for index, expected in alone.items():
            found = Routing.decoded(replies[index].routing)
            assert found.tokens.tolist() == expected.tokens.tolist()
            assert found.choices.tolist() == expected.choices.tolist()
            # measured: below 1e-6
            assert found.entropy == pytest.approx(expected.entropy, rel=1e-4)


def test_documents_are_evenly_spaced_and_few():
    assert [is_recorded(doc_id, 200) for doc_id in range(200)] == [True] * 200
    assert sum(is_recorded(doc_id, 9000) for doc_id in range(9000)) == 250  # every 36th


def test_a_sweep_records_it_and_says_of_a_dense_decoder_that_there_is_none(
    tmp_path: Path, model_folder: Path, task_folder: Path
):
    run, dense = tmp_path / "run", save_model(tmp_path / "dense", decoder="llama")
    extra = "--methods nesting,random"
    assert (
        run_sweep(
            run, task_folder, model_folder, dense, tasks="tiny_one", scales="1,36", extra=extra
        )
        == 0
    )
    rows = {row["name"]: row["routers"] for row in json.loads((run / "models.json").read_text())}
    assert rows == {"tiny": 2, "tiny+random": 2, "dense": 0, "dense+random": 0}
    store, summary = Store(run / "store"), Summary.read(run)
    for model in ("tiny", "tiny+random"):
        keys = keys_of(run, model, "tiny_one@36").values()
        text = sum(store.answer(key).text_tokens for key in keys)
        assert summary.routings[model, 36].tokens.tolist() == [36 * len(keys), text]
    assert not any(name.startswith("dense") for name, _ in summary.routings)
    assert report.main([str(run), "--formats", "svg"]) == 0
    table = (run / "tables" / "experts.md").read_text()
    assert (
        "dense: a dense decoder, it has no experts" in table
        and "tiny: 2 layers of 4 experts" in table
    )
    with (run / "expert_load.csv").open() as file:
        loads = [
            row for row in csv.DictReader(file) if (row["model"], row["scale"]) == ("tiny", "1")
        ]
    assert len(loads) == 2 * 2 * 4
    for kind in ("visual", "text"):
        of_layer = [
            float(row["load"]) for row in loads if (row["tokens"], row["layer"]) == (kind, "0")
        ]
        assert sum(of_layer) == pytest.approx(1, abs=1e-4)
    # asked again, nothing is computed and the same is found
    assert (
        run_sweep(
            run, task_folder, model_folder, dense, tasks="tiny_one", scales="1,36", extra=extra
        )
        == 0
    )
    assert (run / "tables" / "experts.md").read_text() == table == _again(run)


def _again(run: Path) -> str:
    assert report.main([str(run), "--formats"]) == 0
    return (run / "tables" / "experts.md").read_text()


def test_table_figure_and_page(tmp_path: Path):
    run = make_run(tmp_path / "run", documents=6, tasks=("suite_scene",))
    assert report.main([str(run), "--formats", "svg"]) == 0
    summary = Summary.read(run)
    table = routing_table(summary)
    by_scale = {row[0]: row for row in table.rows}
    # visual: entropies 0.5 and 1.0 nats, half of the experts, busiest 2; text: 1.2 and 0.3 nats
    assert by_scale["9"][1:5] == [str(6 * 9), f"{0.75 / math.log(4):.2f}", "0.50", "2.00"]
    assert by_scale["9"][5:7] == [str(6 * 30), f"{0.75 / math.log(4):.2f}"]
    assert table.rows[-1] == ["all", *["–"] * 8]
    assert table.blocks[len(SWEPT)] == "m3-tiny-base: a dense decoder, it has no experts"
    assert [path.name for path in (run / "figures").glob("experts.*")] == ["experts.svg"]
    html = (run / "report.html").read_text()
    assert re.search(r"<h2>Which experts the tokens choose</h2>", html)
    assert page_json(html)["experts"]["m3-tiny"]["9"]["visual"] == [[2, 2, 0, 0], [2, 0, 2, 0]]


def test_a_run_of_dense_models_says_so(tmp_path: Path):
    run = make_run(tmp_path / "run", documents=4, tasks=("suite_scene",))
    rows = json.loads((run / "models.json").read_text())
    write_json(run / "models.json", [rows[1]])
    assert [row[0] for row in routing_table(Summary.read(run)).rows] == ["all"]
