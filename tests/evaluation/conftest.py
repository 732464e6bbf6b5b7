"""A tiny model of random weights, saved with its processor, and a task folder of the harness
with a few documents.
"""

import io
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Features, Image, Value
from lmms_eval.api.task import ConfigurableTask
from PIL import Image as PilImage
from tenacity import wait_none
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, PreTrainedTokenizerFast, SiglipImageProcessorPil

from m3.evaluation.answering.engine import Engine
from m3.evaluation.answering.expert_routing import Routing
from m3.evaluation.results.run_folder import (
    CellRow,
    CostRow,
    Example,
    LatencyRow,
    ModelRow,
    write_json,
    write_rows,
)
from m3.evaluation.results.store import Answer, Cell, Store
from m3.evaluation.statistics import clustered_mean
from m3.evaluation.token_reduction.methods import OWN
from m3.model import M3Config, M3ForConditionalGeneration
from m3.nesting import SingleTile
from m3.processing.processor import M3Processor

SCALES = [1, 4, 9, 36]
SPECIAL = ["<pad>", "<image>", "<|im_start|>", "<|im_end|>"]
COLOURS = ["red", "green", "blue", "white", "black", "yellow"]

TASK = """
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {folder}/{file}.parquet}}}}
test_split: test
doc_to_visual: !function utils.doc_to_visual
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
metadata: {{version: 1.0}}
"""
GENERATE = """
task: {name}
output_type: generate_until
generation_kwargs: {{max_new_tokens: 4, temperature: 0, do_sample: false, until: ["\\n"]}}
process_results: !function utils.{process}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
CHOICE = """
task: tiny_choice
output_type: multiple_choice
doc_to_choice: ["red", "green", "blue", "white", "black", "yellow"]
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
UTILS = """
def doc_to_visual(doc):
    return [doc["image"].convert("RGB")]

def process_results(doc, results):
    return {"exact_match": float(results[0] == doc["answer"])}

def lost_visual(doc):
    if doc["question"] == "Question 4?":
        raise OSError("the picture of document 4 is lost")
    return [doc["image"].convert("RGB")]

def broken_results(doc, results):
    raise KeyError("the metric of this task is broken")
"""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, and the four special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(SPECIAL + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<image>", "<|im_start|>"],
    )


def save_model(
    folder: Path,
    seed: int = 0,
    scales: Sequence[int | str] = SCALES,
    layers: int = 2,
    tiling: dict | None = None,
    decoder: str = "aria_text",
) -> Path:
    """24x24 pixels, 6x6 patches, two layers each (or `layers` in the decoder); weights large
    enough that answers differ.
    """
    torch.manual_seed(seed)
    nesting = {"kind": "grid_pool", "trained_scales": list(scales)}
    small = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    text = {"vocab_size": 260, "pad_token_id": 0, "eos_token_id": 3}
    text |= {"moe_num_experts": 4, "moe_topk": 2} if decoder == "aria_text" else {}
    config = M3Config(
        vision_config=AutoConfig.for_model(
            "siglip_vision_model", **small, image_size=24, patch_size=4, vision_use_head=False
        ),
        text_config=AutoConfig.for_model(
            decoder,
            **small | {"num_hidden_layers": layers},
            **text,
            num_key_value_heads=2,
            initializer_range=0.3,
        ),
        nesting=nesting,
        tiling=tiling,
        image_token_id=1,
        initializer_range=0.3,
    )
    model = M3ForConditionalGeneration(config)
    model.save_pretrained(folder)
    processor = M3Processor(
        SiglipImageProcessorPil(size={"height": 24, "width": 24}),
        make_tokenizer(),
        grid=(6, 6),
        nesting=nesting,
        tiling=tiling,
    )
    processor.save_pretrained(folder)
    return folder


def make_image(index: int) -> PilImage.Image:
    """A colour with a square of another at a place that depends on the index."""
    image = PilImage.new("RGB", (24, 24), COLOURS[index % 6])
    image.paste(
        COLOURS[(index * 5 + 2) % 6],
        (index % 4 * 5, index % 3 * 6, index % 4 * 5 + 9, index % 3 * 6 + 8),
    )
    return image


def write_tasks(folder: Path, documents: int = 6) -> Path:
    """Group `tiny` of `tiny_one` and `tiny_two` (every image asked twice), `tiny_choice`, and
    three that fail.
    """
    folder.mkdir(parents=True)
    (folder / "utils.py").write_text(UTILS)
    features = Features({"image": Image(), "question": Value("string"), "answer": Value("string")})
    for file in ("one", "two"):
        rows = []
        for index in range(documents):
            buffer = io.BytesIO()
            make_image(index if file == "one" else index // 2).save(buffer, "PNG")
            question = (
                f"Which colour{'s' * (index % 3)}?" if file == "one" else f"Question {index}?"
            )
            rows.append(
                {
                    "image": {"bytes": buffer.getvalue(), "path": None},
                    "question": question,
                    "answer": COLOURS[index % 6],
                }
            )
        pq.write_table(
            pa.Table.from_pylist(rows, schema=features.arrow_schema), folder / f"{file}.parquet"
        )
        task = TASK.format(folder=folder, file=file) + GENERATE.format(
            name=f"tiny_{file}", process="process_results"
        )
        (folder / f"tiny_{file}.yaml").write_text(task)
    broken = TASK.format(folder=folder, file="one") + GENERATE.format(
        name="tiny_broken", process="broken_results"
    )
    (folder / "tiny_broken.yaml").write_text(broken)
    lost = TASK.replace("utils.doc_to_visual", "utils.lost_visual").format(
        folder=folder, file="two"
    )
    lost += GENERATE.format(name="tiny_unreadable", process="process_results")
    (folder / "tiny_unreadable.yaml").write_text(lost)
    absent = TASK.format(folder=folder, file="nothing") + GENERATE.format(
        name="tiny_absent", process="process_results"
    )
    (folder / "tiny_absent.yaml").write_text(absent)
    (folder / "tiny_choice.yaml").write_text(TASK.format(folder=folder, file="one") + CHOICE)
    (folder / "tiny.yaml").write_text("group: tiny\ntask: [tiny_one, tiny_two]\n")
    return folder


@pytest.fixture(autouse=True, scope="session")
def no_waiting() -> Iterator[None]:
    """The harness tries a task that fails five times, two seconds apart; here without the
    seconds.
    """
    with pytest.MonkeyPatch.context() as patch:
        for tried in (ConfigurableTask.download, ConfigurableTask.process_results):
            patch.setattr(tried.retry, "wait", wait_none())
        yield


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def task_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks") / "suite")


@pytest.fixture(scope="session")
def engine(model_folder: Path) -> Engine:
    return Engine.load(str(model_folder))


FAMILIES = ("scene", "position", "digits", "document")
SUITE = tuple(f"suite_{family}" for family in FAMILIES)
SWEPT = (1, 4, 9, 36)


def routing_of(scale: int, doc_id: int) -> str:
    """Two layers of four experts, two of them per token: visual tokens go to the first half,
    text everywhere.
    """
    visual = [[scale, scale, 0, 0], [scale, 0, scale, 0]]
    text = [[15, 15, 15, 15], [30 - doc_id % 3, 30, doc_id % 3, 0]]
    entropy = np.array([[scale * 0.5, scale * 1.0], [30 * 1.2, 30 * 0.3]])
    return Routing(np.array([visual, text]), entropy, np.array([scale, 30])).encoded()


def make_run(
    run: Path,
    documents: int = 40,
    tasks: Sequence[str] = SUITE,
    lift: float = 0.0,
    errors: Sequence[str] = (),
) -> Path:
    """A run folder as a sweep leaves it: a trained model that climbs, a base that needs all 36
    tokens, no harness run.

    The trained model's decoder has two layers of four experts, the base's is dense. `lift` is added
    to every chance of a right answer. `errors`: the tasks that count wrong answers, not right ones.
    """
    rng = random.Random(0)
    models = [
        ModelRow(
            "m3-tiny",
            "playground/m3-tiny",
            "a" * 24,
            list(SWEPT),
            [6, 6],
            "grid_pool",
            1_500_000,
            OWN,
            "",
            2,
            SingleTile().to_dict(),
            24,
        ),
        ModelRow(
            "m3-tiny-base",
            "playground/m3-tiny-base",
            "b" * 24,
            [36],
            [6, 6],
            "grid_pool",
            1_500_000,
            OWN,
            "",
            0,
            SingleTile().to_dict(),
            24,
        ),
    ]
    cells, costs, times, examples = [], [], [], []
    with Store(run / "store") as store:
        for model in models:
            for task, name in enumerate(tasks):
                for step, scale in enumerate(SWEPT):
                    hard = 0.2 * (task % 4)
                    trained = (0.95 - hard) + (0.05 + hard) * step / 3
                    p = lift + (
                        trained if model is models[0] or scale == 36 else 0.25 + 0.12 * step
                    )
                    keys, scores, answers = {}, [], []
                    metric = "error_rate" if name in errors else "exact_match"
                    for doc_id in range(documents):
                        cell = Cell(model.weights, name, "d", str(doc_id), "p", scale, "grid_pool")
                        score = float(rng.random() < p)
                        scores.append(1.0 - score if name in errors else score)
                        image = (f"{name}-{doc_id // 2}",)  # two questions about each image
                        text = "a right answer" if score else 'wrong <b>"answer"</b>'
                        answers.append(
                            Answer(
                                cell,
                                name,
                                doc_id,
                                text,
                                None,
                                scale,
                                30,
                                3,
                                0.1,
                                image,
                                routing=routing_of(scale, doc_id) if model is models[0] else None,
                            )
                        )
                        keys[doc_id] = cell.key
                    store.add_answers(answers)
                    store.add_scores({keys[i]: {metric: score} for i, score in enumerate(scores)})
                    mean = clustered_mean(scores, [doc_id // 2 for doc_id in range(documents)])
                    write_json(
                        run / "results" / model.name / f"{name}@{scale}.json", {"m3_keys": keys}
                    )
                    cells.append(
                        CellRow(model.name, name, scale, "ok", metric, True, mean.value, mean.stderr, mean.n,
                                mean.clusters, float(scale), 30.0, 3.0, "", None, name not in errors)
                    )  # fmt: skip
            for scale in SWEPT:
                seconds = 0.004 + 0.0001 * scale
                flops = 10_000_000 * (scale + 30)
                costs.append(
                    CostRow(scale, 1, 4, scale, 30, 700_000_000, 20_000_000, flops, 12_000_000, 9_000 * scale,
                            2_000_000, 500_000, 4_000_000, 1_200_000, model.name, documents, scale, 720_000_000 + flops, "")
                )  # fmt: skip
                times += [
                    LatencyRow(scale, batch, seconds * batch, seconds / 400, seconds * batch * 1.5, seconds / 400,
                               0.002 * batch**0.5, 0.0001, 0.003, 600_000_000, 40,
                               "CPU (x86_64), 2 threads", "float32", model.name)
                    for batch in (1, 8)
                ]  # fmt: skip
    (run / "examples").mkdir()
    for index, name in enumerate(tasks):
        make_image(index).save(run / "examples" / f"{name}.png")
        examples.append(
            vars(
                Example(
                    name,
                    index % documents,
                    f"What <is> this {name}?",
                    "red",
                    f"{name}.png",
                    [32, 32],
                )
            )
        )
    write_json(run / "examples" / "examples.json", examples)
    write_json(run / "models.json", [vars(model) for model in models])
    write_json(run / "baselines.json", {name: {"chance": 0.1, "majority": 0.2} for name in tasks})
    write_json(
        run / "environment.json",
        {"command": ["m3", "sweep"], "python": "3.11", "cores": 2, "accelerators": []},
    )
    write_rows(run / "cells.csv", CellRow, cells)
    write_rows(run / "cost.csv", CostRow, costs)
    write_rows(run / "latency.csv", LatencyRow, times)
    return run
