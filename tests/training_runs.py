"""What tests of training share: a recipe of a tiny random model, and the weights a run leaves."""

from pathlib import Path

import torch
from peft import PeftModel
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


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "final" / "model.safetensors")


def check_merged(base: Path, run: Path) -> None:
    """What an adapter's run leaves merged is the model it began from with the adapter beside it."""
    first, merged = (
        M3ForConditionalGeneration.from_pretrained(folder / "checkpoints" / "final").eval() for folder in (base, run)
    )
    adapted = PeftModel.from_pretrained(first, run / "checkpoints" / "adapter").eval()
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=ids).logits, adapted(input_ids=ids).logits, rtol=1e-5, atol=1e-5)
