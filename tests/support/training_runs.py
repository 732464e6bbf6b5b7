"""What tests of training share: a recipe of a tiny random model, and the weights a run leaves."""

import json
from pathlib import Path

import numpy as np
import torch
from checkpoint_tools import assemble_small
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file

from m3.model import M3ForConditionalGeneration

RECIPE = """
run: {folder}/run
new_model:
  tokenizer: {folder}/tokenizer
  config:
    vision_config: {{model_type: siglip_vision_model, hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1,
      num_attention_heads: 2, image_size: 24, patch_size: 4, vision_use_head: false}}
    text_config: {{model_type: aria_text, hidden_size: 16, intermediate_size: 8, num_hidden_layers: 1, num_attention_heads: 2,
      moe_num_experts: 4, moe_topk: 2, moe_num_shared_experts: 1}}
matryoshka_vis_token_scale: [1, 4, 36]
parts: {{vision_tower: 1e-3, connector: 1e-3, decoder: 1e-3}}
data: {{sources: [{{path: {folder}/data.json, image_folder: {folder}}}], pack_length: 256}}
schedule: {{batch_size: 2, accumulation: 2, steps: 12, log_every: 1, save_every: 3}}
hardware: {{threads: 1}}
"""


NEW_RECIPE = """
run: {folder}/run
model: {folder}/model
matryoshka_vis_token_scale: [1, 9]
parts: {{vision_tower: frozen, connector: 1e-2, decoder: 1e-2}}
data: {{sources: [{{path: {folder}/data.json, image_folder: {folder}}}], pack_length: 64}}
schedule: {{batch_size: 1, steps: 60, log_every: 1, save_every: 30}}
optimiser: {{warmup: 0, schedule: constant, weight_decay: 0.1}}
hardware: {{threads: 1}}
"""


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "final" / "model.safetensors")


def check_merged(base: Path, run: Path) -> None:
    """What an adapter's run leaves merged is the model it began from with the adapter beside it."""
    first, merged = (
        M3ForConditionalGeneration.from_pretrained(folder / "checkpoints" / "final").eval()
        for folder in (base, run)
    )
    adapted = PeftModel.from_pretrained(first, run / "checkpoints" / "adapter").eval()
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            merged(input_ids=ids).logits, adapted(input_ids=ids).logits, rtol=1e-5, atol=1e-5
        )


def make_new_tokens(folder: Path, **options) -> Path:
    """An assembled model, one sample, and a recipe over both."""
    assemble_small(folder, **options)
    Image.fromarray(np.full((20, 30, 3), 100, np.uint8)).save(folder / "0.png")
    talk = [{"from": "human", "value": "<image>\nw4 w5"}, {"from": "gpt", "value": "w6 w7"}]
    (folder / "data.json").write_text(
        json.dumps([{"id": "0", "image": "0.png", "conversations": talk}])
    )
    (folder / "recipe.yaml").write_text(NEW_RECIPE.format(folder=folder))
    return folder / "recipe.yaml"
