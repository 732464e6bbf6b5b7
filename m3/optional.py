"""Packages that only some of M3 needs: what each is for, and which extra of setup.py brings it."""

import importlib.util
from collections.abc import Mapping

MODULES: Mapping[str, str] = {"liger-kernel": "liger_kernel", "scikit-learn": "sklearn"}
"""Package -> the module it brings, where the two are not of one name."""
EXTRAS: Mapping[str, tuple[str, str]] = {  # package -> extra of setup.py, what it is for
    "accelerate": ("train", "training, and loading onto several devices"),
    "sentencepiece": ("convert", "checkpoints whose tokenizer is a tokenizer.model"),
    "datasets": ("train", "training data and benchmarks"),
    "matplotlib": ("train", "charts"),
    "scikit-learn": ("train", "the handwritten digits of the embedded suite"),
    "peft": ("train", "LoRA"),
    "liger-kernel": ("liger", "Liger's kernels (hardware.liger)"),
    "tensorboard": (
        "tensorboard",
        "curves in TensorBoard (report_to; metrics.jsonl of a run has them anyway)",
    ),
    "wandb": (
        "wandb",
        "curves in Weights & Biases (report_to; metrics.jsonl of a run has them anyway)",
    ),
    "deepspeed": ("deepspeed", "ZeRO training on several GPUs"),
    "bitsandbytes": ("quantise", "4-bit and 8-bit weights"),
    "torchao": ("quantise", "int8 and int4 weights"),
    "av": ("video", "video files"),
    "fastapi": ("serve", "the HTTP server"),
    "ray": ("serve", "the HTTP server on several machines"),
}


def require(package: str) -> None:
    """Before an import that may fail: a `ModuleNotFoundError` that says what to install."""
    extra, purpose = EXTRAS[package]
    if importlib.util.find_spec(MODULES.get(package, package)) is None:
        raise ModuleNotFoundError(
            f"{purpose}: this needs the package {package}, which is not installed: pip install -e "
            f"'.[{extra}]'",
            name=package,
        )
