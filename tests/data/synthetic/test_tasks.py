"""The tasks of m3_tiny, through the real harness: from any folder, chat and simple, with models
that know answers.
"""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.protocol import ChatMessages
from lmms_eval.tasks import TaskManager
from lmms_eval.utils import load_yaml_config

from m3.data.synthetic.suite import FAMILIES, majority_answers, question_kind

TASKS = Path(__file__).parents[3] / "lmms_eval_tasks"
DOCUMENTS = 200


class Answerer(lmms):
    """A model that answers from the document, through the chat or the simple form of requests."""

    def __init__(self, answer: Callable[[dict[str, Any]], str], is_simple: bool) -> None:
        super().__init__()
        self.answer = answer
        self.is_simple = is_simple
        self.asked: list[tuple[str, tuple[int, int]]] = []

    def generate_until(self, requests: list[Instance]) -> list[str]:
        answers: list[str] = []
        for request in requests:
            if self.is_simple:
                text, generation, doc_to_visual, doc_id, task, split = request.args
                (image,) = doc_to_visual(self.task_dict[task][split][doc_id])
            else:
                _, doc_to_messages, generation, doc_id, task, split = request.args
                messages = ChatMessages(
                    messages=doc_to_messages(self.task_dict[task][split][doc_id])
                )
                (image,), _, _ = messages.extract_media()
                kinds = [content.type for content in messages.messages[0].content]
                assert (len(messages.messages), kinds) == (1, ["image", "text"])
                text = messages.messages[0].content[1].text
            assert generation["max_new_tokens"] == 8
            assert generation["until"] == ["\n"]
            self.asked.append((text, image.size))
            answers.append(self.answer(self.task_dict[task][split][doc_id]))
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise AssertionError("no task of m3_tiny scores continuations")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise AssertionError("no task of m3_tiny has rounds")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another current directory, and a cache of datasets of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def evaluate(model: Answerer, tasks: list[str]) -> dict[str, Any]:
    manager = TaskManager(include_path=str(TASKS), include_defaults=False, model_name="answerer")
    results = simple_evaluate(
        model=model, tasks=tasks, task_manager=manager, bootstrap_iters=0, batch_size=1
    )
    assert results is not None
    return results


def shout(doc: dict[str, Any]) -> str:
    return f" {doc['answer'].upper()}.  "


@pytest.mark.parametrize("is_simple", [False, True])
def test_an_oracle_is_always_right(is_simple: bool, elsewhere: Path) -> None:
    """Also when it shouts and adds a full stop."""
    model = Answerer(shout, is_simple)
    results = evaluate(model, ["m3_tiny"])
    assert results["results"]["m3_tiny"]["exact_match,none"] == 1.0
    for family in FAMILIES:
        assert results["results"][f"m3_tiny_{family}"]["exact_match,none"] == 1.0
        assert results["n-samples"][f"m3_tiny_{family}"]["effective"] == DOCUMENTS
        samples = results["samples"][f"m3_tiny_{family}"]
        assert len(samples) == DOCUMENTS
        assert all(sample["exact_match"] == 1.0 for sample in samples)
    assert len(model.asked) == DOCUMENTS * len(FAMILIES)
    assert {size for _, size in model.asked} == {(96, 96)}
    possible = {
        text for family in FAMILIES.values() for kind in family.kinds for text in kind.texts()
    }
    asked = {text for text, _ in model.asked}
    assert asked <= possible
    assert len(asked) > 40


def test_constant_answers_score_the_stated_majority_baseline(elsewhere: Path) -> None:
    family = "digits"
    constant = majority_answers(family, 100, seed=0)
    model = Answerer(
        lambda doc: constant[question_kind(family, doc["question"]).name], is_simple=False
    )
    results = evaluate(model, [f"m3_tiny_{family}"])
    stated = json.loads((TASKS / "m3_tiny" / "data" / "baselines.json").read_text(encoding="utf-8"))
    assert results["results"][f"m3_tiny_{family}"]["exact_match,none"] == pytest.approx(
        stated[family]["majority"]
    )
    assert 0 < results["results"][f"m3_tiny_{family}"]["exact_match_stderr_clt,none"] < 0.05


def test_every_family_has_its_task() -> None:
    group = yaml.safe_load((TASKS / "m3_tiny" / "m3_tiny.yaml").read_text(encoding="utf-8"))
    assert group["task"] == [f"m3_tiny_{family}" for family in FAMILIES]
    for family in FAMILIES:
        config = load_yaml_config(str(TASKS / "m3_tiny" / f"m3_tiny_{family}.yaml"))
        assert config["task"] == f"m3_tiny_{family}"
        assert config["dataset_kwargs"]["data_files"] == {
            "test": str(TASKS / "m3_tiny" / "data" / f"{family}.parquet")
        }


@pytest.fixture(scope="module")
def utils() -> ModuleType:
    """The task's functions, loaded from their file as the harness does."""
    spec = importlib.util.spec_from_file_location("m3_tiny_utils", TASKS / "m3_tiny" / "utils.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("Red circle", 1),
        (" red   circle.\n", 1),
        ("RED-CIRCLE", 1),
        ("red", 0),
        ("a red circle", 0),
        ("", 0),
    ],
)
def test_score_forgives_case_space_and_marks_only(
    utils: ModuleType, reply: str, score: int
) -> None:
    assert utils.process_results({"answer": "red circle"}, [reply]) == {"exact_match": float(score)}


def test_prompts_of_the_model_go_around_the_question(utils: ModuleType) -> None:
    prompts = {"pre_prompt": "Look. ", "post_prompt": " Answer briefly."}
    assert utils.doc_to_text({"question": "Why?"}, prompts) == "Look. Why? Answer briefly."
    assert utils.doc_to_text({"question": "Why?"}) == "Why?"
