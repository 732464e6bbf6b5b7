"""Files for servers: of several models, methods and scales in one run, each under a name of its
own, with its own answers.
"""

import json
from pathlib import Path

import pytest

from m3.evaluation.harness import submit
from m3.evaluation.results.store import Store
from m3.evaluation.sweep.selection import labels
from tests.evaluation.conftest import save_model
from tests.evaluation.test_sweep import keys_of, rows, run_sweep

# A task whose labels are hidden, written as those of the harness are (vizwiz_vqa_test): the time is
# in the file's name.
SERVER = """
import datetime, json
from lmms_eval.tasks._task_utils.file_utils import generate_submission_file

def doc_to_visual(doc):
    return [doc["image"].convert("RGB")]

def process_results(doc, results):
    return {"submission": {"question": doc["question"], "answer": results[0]}}

def aggregate(results, args):
    now = datetime.datetime.now().strftime("%Y-%m%d-%H%M-%S")
    with open(generate_submission_file(f"test-submission-{now}.json", args), "w") as file:
        json.dump(results, file)
"""


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory, task_folder: Path) -> Path:
    """`vizwiz_vqa_test` under its own name, on pictures of the tests."""
    folder = tmp_path_factory.mktemp("hidden") / "suite"
    folder.mkdir()
    (folder / "utils.py").write_text(SERVER)
    text = (task_folder / "tiny_one.yaml").read_text().replace("tiny_one", "vizwiz_vqa_test")
    lines = [line for line in text.splitlines() if not line.startswith("metric_list")]
    lines += [
        "metric_list:",
        "- {metric: submission, aggregation: !function utils.aggregate, higher_is_better: true}",
    ]
    (folder / "vizwiz_vqa_test.yaml").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, hidden: Path) -> Path:
    """Two models whose folders have one name, two methods, two scales."""
    folder = tmp_path_factory.mktemp("submit")
    models = [
        save_model(folder / parent / "tiny", seed=seed)
        for seed, parent in enumerate(("first", "second"))
    ]
    extra = "--methods nesting,random"
    assert (
        run_sweep(
            folder / "run", hidden, *models, tasks="vizwiz_vqa_test", scales="4,36", extra=extra
        )
        == 0
    )
    return folder / "run"


NAMES = [f"{parent}_tiny{method}" for parent in ("first", "second") for method in ("", "+random")]


def test_every_model_method_and_scale_has_a_file_with_its_own_answers(
    run: Path, capsys: pytest.CaptureFixture[str]
):
    assert rows(run) == []  # a server scores it
    assert submit.main([str(run)]) == 0
    printed = capsys.readouterr().out
    files = sorted(path.name for path in (run / "submit").iterdir())
    assert files == sorted(
        f"vizwiz_vqa_test__{name}__{scale}_tokens.json" for name in NAMES for scale in (4, 36)
    )
    store, seen = Store(run / "store"), set()
    for name in NAMES:
        for scale in (4, 36):
            file = f"vizwiz_vqa_test__{name}__{scale}_tokens.json"
            answers = [row["answer"] for row in json.loads((run / "submit" / file).read_text())]
            keys = keys_of(run, name, f"vizwiz_vqa_test@{scale}")
            assert answers == [store.answer(keys[str(doc_id)]).text for doc_id in range(6)]
            assert f"{name} at {scale} tokens: " in printed and file in printed
            seen.add(tuple(answers))
    assert len(seen) >= 6  # they are not copies of one another


def test_nothing_of_an_earlier_sweep_is_submitted(run: Path, hidden: Path):
    """The same folder, one model and one scale less: what the first sweep wrote for the others
    is gone.
    """
    model = run.parent / "first" / "tiny"
    assert run_sweep(run, hidden, model, tasks="vizwiz_vqa_test", scales="4") == 0
    assert [one.file.name for one in submit.collect(run)] == [
        "vizwiz_vqa_test__tiny__4_tokens.json"
    ]
    assert [path.name for path in (run / "submit").iterdir()] == [
        "vizwiz_vqa_test__tiny__4_tokens.json"
    ]


def test_a_run_without_a_score_has_no_report_and_names_the_way_on(run: Path):
    from m3.evaluation.report import command as report

    with pytest.raises(
        ValueError,
        match=r"has no scores, but may have files for servers: m3 "
        r"submit .* collects them",
    ):
        report.main([str(run)])


def test_models_are_told_apart_by_where_they_really_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for parent in ("a", "b"):
        (tmp_path / parent / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "tiny")
    assert list(labels([".", "../../b/tiny"])) == ["a_tiny", "b_tiny"]
    assert list(labels(["."])) == ["tiny"]
    with pytest.raises(ValueError, match=r"a model is given twice: \., \.\./tiny"):
        labels([".", "../tiny"])
