"""What tests of several folders share."""

from collections.abc import Callable
from pathlib import Path

import pytest
from required_tests import pytest_make_collect_report, pytest_runtest_makereport

# hooks that pytest finds here
__all__ = ["pytest_make_collect_report", "pytest_runtest_makereport"]


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Callable[[Path], Path]:
    """Writes a whole checkpoint of random weights (48x48 pixels, 12x12 tokens, the suite's
    tokenizer) and returns its folder.
    """
    from tiny_models import make_model
    from transformers import SiglipImageProcessorPil

    from m3.data.synthetic.tokenizer import build_tokenizer
    from m3.processing import M3Processor

    def write(folder: Path) -> Path:
        nesting = {"kind": "grid_pool", "trained_scales": [1, 4, 9, 36, 144]}
        image_processor = SiglipImageProcessorPil(size={"height": 48, "width": 48})
        processor = M3Processor(image_processor, build_tokenizer(), grid=(12, 12), nesting=nesting)
        model = make_model(
            vocab_size=len(processor.tokenizer), image_token_id=processor.image_token_id
        )
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        return folder

    return write
