"""Packaging metadata.

Tool settings are in pyproject.toml, tested versions in scripts/constraints.txt.
"""

from pathlib import Path

from setuptools import find_packages, setup

CORE = [
    "torch>=2.8",
    # 5.22 asks a processor for a table of defaults that 5.23 no longer has; 5.24 hands `forward` its
    # cache under another name
    "transformers>=5.23,<5.24",
    "einops>=0.8",
    "httpx2>=2.0",
    "huggingface_hub>=1.0",
    "jaxtyping>=0.3",
    "jinja2>=3.1",
    "markupsafe>=3.0",
    "numpy>=2.0",
    "pillow>=11.0",
    "pyyaml>=6.0",
    "safetensors>=0.5",
    "tokenizers>=0.21",
    "tqdm>=4.66",
]
EXTRAS = {
    # scikit-learn brings the handwritten digits of the embedded suite, matplotlib draws its charts
    "train": [
        "accelerate>=1.10",
        "datasets>=4.0",
        "matplotlib>=3.9",
        "peft>=0.17",
        "pyarrow>=18.0",
        "scikit-learn>=1.6",
    ],
    # the version is exact because the plug-in follows interfaces that lmms-eval does not promise to
    # keep
    "eval": [
        *(
            "lmms-eval==0.7.3",
            "datasets>=4.0",
            "loguru>=0.7",
            "matplotlib>=3.9",
            "openpyxl>=3.1",
            "pandas>=2.2",
            "psutil>=6.0",
            "pyarrow>=18.0",
        ),
        "scipy>=1.13",
    ],
    # sentencepiece 0.2.3 is made for protobuf 7.36, the tested protobuf is older
    "convert": ["protobuf>=5.0", "sentencepiece>=0.2,<=0.2.1"],
    # below 16, as lmms-eval asks
    "video": ["av>=14.2,<16"],
    # what the harness's tasks of the suites import: Video-MME, LongVideoBench (no wheels of decord
    # but for x86-64), MathVista
    "benchmarks": [
        "decord>=0.6; platform_machine in 'x86_64 AMD64'",
        "levenshtein>=0.26",
        "opencv-python-headless>=4.10",
    ],
    "quantise": ["accelerate>=1.10", "bitsandbytes>=0.49", "torchao>=0.14"],
    "serve": [
        "fastapi>=0.115",
        "httpcore2>=2.0",
        "llguidance>=1.9",
        "prometheus-client>=0.21",
        "pydantic>=2.9",
        "pydantic_core>=2.23",
        "ray[serve]>=2.40",
        "starlette>=0.41",
        "uvicorn>=0.32",
    ],
    "tensorboard": ["tensorboard>=2.18"],
    "wandb": ["wandb>=0.18"],
    "liger": ["liger-kernel>=0.6"],
    "deepspeed": ["accelerate>=1.10", "deepspeed>=0.17"],
    # flash-attn is built against the torch that is installed: pip install --no-build-isolation
    "cuda": ["bitsandbytes>=0.46", "deepspeed>=0.17", "flash-attn>=2.7", "torchvision>=0.23"],
    "dev": [
        "beartype>=0.21",
        "import-linter>=2.3",
        "playwright>=1.50",
        "axe-playwright-python>=0.1.4",
        "ipykernel>=6.29",
        "nbclient>=0.10",
        "openai>=2.0",
        "pyright>=1.1.400",
        "pytest>=8.3",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.6",
        "ruff>=0.12",
        "schemathesis>=4.0",
        "tensorboard>=2.18",
    ],
}

setup(
    name="m3",
    version="0.1.0",
    description="Elastic visual tokens for vision-language models: one model, any visual-token "
    "budget.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["m3", "m3.*"]),
    package_data={
        "m3": [
            "recipes/*.yaml",
            "recipes/architectures/*.yaml",
            "data/checking/templates/*",
            "evaluation/templates/*",
            "evaluation/suites/*.yaml",
            "evaluation/published/*.yaml",
            "serving/ui/*.*",
            "serving/ui/examples/*.png",
        ]
    },
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": ["m3 = m3.cli:main"],
        "lmms_eval.models": ["m3 = m3.evaluation.harness.plugin:manifests"],
    },
)
