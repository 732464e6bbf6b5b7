"""A processor comes back from its files as it was, and broken files are refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pictures import picture
from transformers import SiglipImageProcessorPil

from m3.nesting import NESTINGS
from m3.processing import M3Processor

MakeProcessor = Callable[..., M3Processor]


@pytest.mark.parametrize("kind", NESTINGS)
def test_save_and_load(kind: str, make_processor: MakeProcessor, tmp_path: Path) -> None:
    original = make_processor(grid=(4, 6), nesting={"kind": kind, "trained_scales": [24, 1, 6]})
    original.save_pretrained(tmp_path)
    loaded = M3Processor.from_pretrained(tmp_path)
    assert type(loaded.image_processor) is SiglipImageProcessorPil
    assert (loaded.grid, loaded.nesting, loaded.image_token) == (
        (4, 6),
        original.nesting,
        "<image>",
    )
    assert loaded.chat_template == original.chat_template
    one, two = (
        made(images=picture(size=(9, 5)), text="<image>\nhow many?") for made in (original, loaded)
    )
    assert sorted(one) == sorted(two)
    for name in one:
        assert torch.equal(one[name], two[name]), name
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    for name in ("processor_config.json", "chat_template.jinja"):
        assert (again / name).read_bytes() == (tmp_path / name).read_bytes()


def test_loading_with_other_settings(processor: M3Processor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    assert M3Processor.from_pretrained(tmp_path, grid=(24, 24)).reachable_scales[-1] == 576


def test_auto_processor(processor: M3Processor, tmp_path: Path) -> None:
    from transformers import AutoProcessor

    import m3.auto  # noqa: F401 (registers)

    processor.save_pretrained(tmp_path)
    assert type(AutoProcessor.from_pretrained(tmp_path)) is M3Processor


def test_a_broken_processor_config_is_refused(processor: M3Processor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    good = json.loads(path.read_text())
    path.write_text(json.dumps({**good, "gird": [1, 1]}))
    with pytest.raises(
        ValueError,
        match=r"processor_config\.json: unknown key 'gird'; known: "
        r"grid, nesting",
    ):
        M3Processor.from_pretrained(tmp_path)
    path.write_text(json.dumps({name: value for name, value in good.items() if name != "grid"}))
    with pytest.raises(ValueError, match="does not say grid, so this is no M3 processor"):
        M3Processor.from_pretrained(tmp_path)
