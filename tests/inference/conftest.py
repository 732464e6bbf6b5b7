"""One small random checkpoint for the folder.

Its decoder is 64 wide: bitsandbytes packs groups of 64 weights.
"""

from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_models import make_config
from transformers import SiglipImageProcessorPil
from videos import write_video

from m3.data.synthetic.tokenizer import build_tokenizer
from m3.inference.loading import load
from m3.model import M3ForConditionalGeneration
from m3.processing import M3Processor

TEXT = {
    "model_type": "aria_text",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "moe_num_experts": 4,
    "moe_topk": 2,
    "moe_num_shared_experts": 1,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "eos_token_id": 2,
}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48x48 pixels, 12x12 tokens, the suite's tokenizer, a mixture of experts."""
    folder = tmp_path_factory.mktemp("inference") / "model"
    nesting = {"kind": "grid_pool", "trained_scales": [1, 4, 9, 36, 144]}
    image_processor = SiglipImageProcessorPil(size={"height": 48, "width": 48})
    processor = M3Processor(image_processor, build_tokenizer(), grid=(12, 12), nesting=nesting)
    torch.manual_seed(0)
    text = TEXT | {"vocab_size": len(processor.tokenizer)}
    model = M3ForConditionalGeneration(
        make_config(text_config=text, image_token_id=processor.image_token_id)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def loaded(checkpoint: Path) -> tuple[M3ForConditionalGeneration, M3Processor]:
    return load(checkpoint, device="cpu")


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`red.png`, `ramp.png` and `short.mp4` (3 s, 24 frames)."""
    folder = tmp_path_factory.mktemp("files")
    Image.new("RGB", (60, 40), "red").save(folder / "red.png")
    Image.linear_gradient("L").convert("RGB").save(folder / "ramp.png")
    write_video(folder / "short.mp4")
    return folder
