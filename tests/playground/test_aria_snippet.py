"""The snippet of Aria's README, line for line but for four things: the model is ours and lies on this
machine, its class is the one of images and texts, the picture is a file, and there may be no CUDA.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SNIPPET = """
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

model_id_or_path = "playground/m3-tiny"

model = AutoModelForImageTextToText.from_pretrained(model_id_or_path, device_map="auto", torch_dtype=torch.bfloat16, trust_remote_code=True)

processor = AutoProcessor.from_pretrained(model_id_or_path, trust_remote_code=True)

image = Image.open("m3/serving/ui/examples/scene.png")

messages = [
    {
        "role": "user",
        "content": [
            {"text": None, "type": "image"},
            {"text": "what is the image?", "type": "text"},
        ],
    }
]

text = processor.apply_chat_template(messages, add_generation_prompt=True)
inputs = processor(text=text, images=image, return_tensors="pt")
inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
inputs = {k: v.to(model.device) for k, v in inputs.items()}

with torch.inference_mode(), torch.amp.autocast(model.device.type, dtype=torch.bfloat16):
    output = model.generate(
        **inputs,
        max_new_tokens=500,
        stop_strings=["<|im_end|>"],
        tokenizer=processor.tokenizer,
        do_sample=True,
        temperature=0.9,
    )
    output_ids = output[0][inputs["input_ids"].shape[1]:]
    result = processor.decode(output_ids, skip_special_tokens=True)

print(result)
"""


def test_the_snippet_of_arias_readme_answers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import m3.auto  # noqa: F401 (registers)

    monkeypatch.chdir(ROOT)
    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": "aria"}
    exec(compile(SNIPPET, "Aria's README.md", "exec"), names)
    said = names["processor"].decode(names["output_ids"])
    assert said.endswith("<|im_end|>") and said.count("<|im_end|>") == 1
    assert capsys.readouterr().out == f"{said.removesuffix('<|im_end|>')}\n"
