"""Packages that only some of M3 needs: what each is for, and which extra of setup.py brings it."""

import importlib.util
from collections.abc import Mapping

EXTRAS: Mapping[str, tuple[str, str]] = {  # package -> extra of setup.py, what it is for
    "accelerate": ("train", "training, and loading onto several devices"),
    "sentencepiece": ("convert", "checkpoints whose tokenizer is a tokenizer.model"),
    "datasets": ("train", "training data and benchmarks"),
    "matplotlib": ("train", "charts"),
    "scikit-learn": ("train", "the handwritten digits of the embedded suite"),
    "peft": ("train", "LoRA"),
    "deepspeed": ("deepspeed", "ZeRO training on several GPUs"),
    "bitsandbytes": ("quantise", "4-bit and 8-bit weights"),
    "torchao": ("quantise", "int8 and int4 weights"),
    "av": ("video", "video files"),
    "fastapi": ("serve", "the HTTP server"),
    "ray": ("serve", "the HTTP server on several machines"),
    "gradio": ("serve", "the web page"),
}


def require(package: str) -> None:
    """Before an import that may fail: a `ModuleNotFoundError` that says what to install."""
    extra, purpose = EXTRAS[package]
    if importlib.util.find_spec(package) is None:
        raise ModuleNotFoundError(
            f"{purpose}: this needs the package {package}, which is not installed: pip install -e '.[{extra}]'",
            name=package,
        )
