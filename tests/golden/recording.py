"""Numbers and texts that a change of names, files or interfaces must reproduce to the last digit.

`python tests/golden/recording.py` writes them anew: only after a change that is meant to change
them, in a commit that says so. Floating-point numbers are those of one kind of processor and one
torch: `kernel_digest` tells whether this machine's are equal.
"""

import base64
import contextlib
import csv
import hashlib
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
RECORDS = Path(__file__).parent / "records"
FIXTURES = ROOT / "tests" / "fixtures" / "llava_m3"
SCALES = {"flat": (1, 4, 9, 16, 36, 64, 144, 576), "anyres": (1, 4, 9, 16, 36, 64, 144, 576)}
RECIPE = """
run: {folder}/run
new_model:
  tokenizer: {folder}/data/tokenizer
  config:
    vision_config: {{model_type: siglip_vision_model, hidden_size: 32, intermediate_size: 32, num_hidden_layers: 2,
      num_attention_heads: 2, image_size: 96, patch_size: 8, vision_use_head: false}}
    text_config: {{model_type: aria_text, hidden_size: 32, intermediate_size: 16, num_hidden_layers: 2, num_attention_heads: 2,
      moe_num_experts: 4, moe_topk: 2, moe_num_shared_experts: 1}}
    router_balance_coef: 0.01
    router_z_coef: 0.001
matryoshka_vis_token_scale: [1, 4, 9, 36, 144]
parts: {{vision_tower: 1e-3, connector: 1e-3, decoder: 1e-3}}
data: {{sources: [{{path: {folder}/data/train, format: llava_parquet}}], pack_length: 512}}
schedule: {{batch_size: 2, accumulation: 2, steps: 20, log_every: 1, save_every: 20}}
hardware: {{threads: 1}}
"""
VERBS = (
    "train",
    "chat",
    "serve",
    "sweep",
    "submit",
    "report",
    "convert",
    "assemble",
    "data",
    "bench",
    "doctor",
)
SUBVERBS = {
    "data": ("check", "show", "tiny", "fetch-eval"),
    "bench": ("step", "train", "sweep", "serve", "cost", "convert"),
}


def m3(*arguments: str) -> str:
    """What a verb prints on standard output."""
    from m3.cli import main

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        code = main(list(arguments))
        if code:
            raise RuntimeError(f"m3 {' '.join(arguments)} ended with {code}")
    return printed.getvalue()


def kernel_digest() -> str:
    """Results of the operations that models are made of, to the last bit; other processors round
    otherwise.
    """
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(3, 4, 77, 32, generator=generator)
    attended = torch.nn.functional.scaled_dot_product_attention(
        states, states, states, is_causal=True
    )
    product = attended.flatten(0, 2) @ torch.randn(32, 96, generator=generator)
    image = torch.nn.functional.conv2d(
        torch.randn(2, 3, 32, 32, generator=generator),
        torch.randn(16, 3, 4, 4, generator=generator),
        stride=4,
    )
    results = [product, image, torch.nn.functional.silu(product).softmax(-1), product.exp().mean(0)]
    return hashlib.sha256(b"".join(result.numpy().tobytes() for result in results)).hexdigest()


def record_machine() -> dict[str, Any]:
    """The machine and the versions that numbers and texts belong to."""
    return {
        "kernels": kernel_digest(),
        "torch": torch.__version__,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
    }


def record_training(folder: Path) -> dict[str, Any]:
    """Losses of twenty steps, of each scale and of the routers, and what `m3 data check` says of
    the recipe.
    """
    from transformers import SiglipImageProcessorPil

    m3("data", "tiny", "--out", str(folder / "data"), "--train", "4", "--test", "0")
    SiglipImageProcessorPil(size={"height": 96, "width": 96}).save_pretrained(
        folder / "data" / "tokenizer"
    )
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(folder=folder))
    check = re.sub(
        " {2,}", "  ", m3("data", "check", str(recipe)).replace(str(folder), "FOLDER")
    )  # columns are as wide
    m3("train", str(recipe))
    rows = [
        json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    steps = [
        {name: value for name, value in row.items() if _is_result(name)}
        for row in rows
        if "loss" in row
    ]
    return {"steps": steps, "data check": check.splitlines()}


def _is_result(name: str) -> bool:
    """Tell results from times, memory and speeds, which differ from run to run."""
    return name in ("step", "loss", "grad_norm", "learning_rate", "tokens") or name.startswith(
        ("loss", "router")
    )


def record_logits(folder: Path) -> dict[str, Any]:
    """Last logits of both fixtures at every scale, after a conversion from the original format."""
    from checkpoint_tools import make_tokenizer
    from transformers import AutoModelForImageTextToText, AutoProcessor

    make_tokenizer(96).save_pretrained(folder / "tokenizer")
    logits: dict[str, Any] = {}
    for fixture, scales in SCALES.items():
        m3(
            "convert",
            str(FIXTURES / fixture),
            str(folder / fixture),
            "--tokenizer",
            str(folder / "tokenizer"),
        )
        model = AutoModelForImageTextToText.from_pretrained(folder / fixture).eval()
        processor = AutoProcessor.from_pretrained(folder / fixture)
        for scale in scales:
            inputs = processor(
                images=FIXTURES / fixture / "image.png",
                text="<image> w5 w6",
                matryoshka_vis_token_scale=scale,
            )
            with torch.no_grad():
                last = model(**inputs).logits[0, -1]
            logits[f"{fixture} {scale}"] = [float(value) for value in last]
    return logits


def record_sweep(folder: Path) -> dict[str, Any]:
    """Tables of a small sweep of the shipped model, and of its report, without times."""
    run = folder / "sweep"
    options = (
        "--scales",
        "1,9,144",
        "--limit",
        "4",
        "--no-latency",
        "--device",
        "cpu",
        "--out",
        str(run),
    )
    m3(
        "sweep",
        str(ROOT / "playground" / "m3-tiny"),
        "--tasks",
        "m3_tiny_scene,m3_tiny_digits",
        *options,
    )
    m3("report", str(run))
    return {name: _read_table(run / name) for name in ("cells.csv", "cost.csv", "summary.csv")}


def _read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        {
            name: value
            for name, value in row.items()
            if not re.search(r"seconds|_s$|time|path", name)
        }
        for row in rows
    ]


def record_answer(folder: Path) -> dict[str, Any]:
    """What the server answers at two scales, with its usage."""
    import httpx2
    from serving_files import serving

    from m3.data.synthetic.suite import train_row
    from m3.inference.loading import load
    from m3.serving.engine.engine import Engine
    from m3.serving.settings import Settings

    image = train_row("scene", 0, seed=0)["image"]
    content = image["bytes"] if isinstance(image, Mapping) else image
    url = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    engine = Engine(*load(ROOT / "playground" / "m3-tiny", device="cpu"), Settings())
    answers: dict[str, Any] = {}
    with serving(engine, Settings()) as address:
        name = httpx2.get(f"{address}/v1/models").json()["data"][0]["id"]
        for scale in (1, 36):
            parts = [
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "text", "text": "What colour is the background?"},
            ]
            body = {
                "model": name, "messages": [{"role": "user", "content": parts}], "temperature": 0,
                "matryoshka_vis_token_scale": scale, "max_tokens": 8,
            }  # fmt: skip
            reply = (
                httpx2.post(f"{address}/v1/chat/completions", json=body, timeout=300)
                .raise_for_status()
                .json()
            )
            answers[str(scale)] = {name: reply[name] for name in ("object", "choices", "usage")}
    return answers


def record_help(folder: Path) -> dict[str, list[str]]:
    """Texts of `--help`, of every verb, at 100 columns."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"
    commands = [("--help",), *((verb, "--help") for verb in VERBS)]
    commands += [(verb, sub, "--help") for verb, subs in SUBVERBS.items() for sub in subs]
    try:
        return {" ".join(command): m3(*command).splitlines() for command in commands}
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)


RECORDINGS = {
    "training": record_training,
    "logits": record_logits,
    "sweep": record_sweep,
    "answer": record_answer,
    "help": record_help,
}
NUMBERS = ("training", "logits", "sweep")


def main() -> None:
    """Writes all records, or those that are named."""
    torch.set_num_threads(1)
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    os.chdir(ROOT)
    RECORDS.mkdir(exist_ok=True)
    (RECORDS / "machine.json").write_text(json.dumps(record_machine(), indent=1) + "\n")
    for name in sys.argv[1:] or RECORDINGS:
        with tempfile.TemporaryDirectory() as folder:
            content = RECORDINGS[name](Path(folder))
        (RECORDS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
