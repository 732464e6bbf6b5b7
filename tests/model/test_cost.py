"""The cost formulas against torch's own counter, for every kind of decoder, tower and connector."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

from m3.model import M3Config, M3ForConditionalGeneration
from m3.model.cost import CostModel, StackWeights

VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 4}
TOWERS = {
    "siglip_vision_model": {**VISION, "image_size": 48, "vision_use_head": False},
    "clip_vision_model": {**VISION, "image_size": 48},
    "siglip2_vision_model": {**VISION, "num_patches": 144, "vision_use_head": False},
    "dinov2": {**VISION, "image_size": 48},
}
TEXT = {
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 200,
    "pad_token_id": 0,
    "head_dim": 16,
}
DECODERS = {
    "aria_text": {**TEXT, "moe_num_experts": 6, "moe_topk": 2, "moe_num_shared_experts": 2},
    "qwen3_moe": {
        **TEXT,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "mlp_only_layers": [0],
    },
    "mixtral": {**TEXT, "num_local_experts": 4, "num_experts_per_tok": 2},
    "llama": TEXT,
    "qwen3": TEXT,
}
CASES = [("siglip_vision_model", decoder, "mlp2x_gelu") for decoder in DECODERS]
CASES += [(tower, "llama", "linear") for tower in TOWERS if tower != "siglip_vision_model"]
CASES += [("clip_vision_model", "qwen3", "resampler")]


def make_model(tower: str, decoder: str, connector: str) -> M3ForConditionalGeneration:
    torch.manual_seed(0)
    config = M3Config(
        vision_config=AutoConfig.for_model(tower, **TOWERS[tower]),
        text_config=AutoConfig.for_model(decoder, **DECODERS[decoder]),
        connector={"kind": connector, "num_queries": 36, "num_heads": 4},
        nesting={"kind": "query_prefix" if connector == "resampler" else "grid_pool"},
        image_token_id=199,
        drop_class_token=tower in ("clip_vision_model", "dinov2"),
        attn_implementation="eager",  # the counter has no rule for fused attention on the CPU
        experts_implementation="eager",  # nor for grouped products
    )
    return M3ForConditionalGeneration(config).eval()


@pytest.mark.parametrize(("tower", "decoder", "connector"), CASES)
@torch.no_grad()
def test_flops_equal_the_counter(tower: str, decoder: str, connector: str):
    model = make_model(tower, decoder, connector)
    scale, text = 9, 31
    cost = CostModel(model).cost(scale, text)

    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        features = model.get_image_features(torch.rand(1, 3, 48, 48)).pooler_output
    assert cost.vision_flops + cost.connector_flops == pytest.approx(counter.get_total_flops(), rel=0.01)

    ids = torch.cat([torch.full((1, scale), 199), torch.randint(1, 190, (1, text))], dim=1)
    with FlopCounterMode(display=False) as counter:
        prefill = model(
            ids, image_features=features, image_scales=torch.tensor([scale]), use_cache=True, logits_to_keep=1
        )
    assert cost.prefill_flops == pytest.approx(counter.get_total_flops(), rel=0.01)
    cached = [tensor for layer in prefill.past_key_values.layers for tensor in (layer.keys, layer.values)]
    assert cost.kv_cache_bytes == sum(tensor.numel() * tensor.element_size() for tensor in cached)

    with FlopCounterMode(display=False) as counter:
        model(torch.tensor([[7]]), past_key_values=prefill.past_key_values, use_cache=True)
    assert cost.token_flops == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_cases_cover_every_kind():
    assert {decoder for _, decoder, _ in CASES} == set(DECODERS)
    assert {tower for tower, _, _ in CASES} == set(TOWERS)


def test_from_config_allocates_nothing_and_agrees():
    model = make_model("siglip_vision_model", "aria_text", "mlp2x_gelu")
    assert CostModel.from_config(model.config).cost(36, 20) == CostModel(model).cost(36, 20)
    half = CostModel.from_config(model.config, torch.bfloat16).cost(36, 20)
    assert half.kv_cache_bytes * 2 == CostModel(model).cost(36, 20).kv_cache_bytes


def test_bytes_read_count_the_parameters():
    """Dense: a prefill reads every matrix of the model, a token those of the decoder and the head."""
    model = make_model("siglip_vision_model", "llama", "mlp2x_gelu")
    cost = CostModel(model).cost(9, 31)
    decoder = sum(p.numel() for p in model.model.language_model.layers.parameters() if p.ndim > 1)
    assert cost.token_parameter_bytes == 4 * (decoder + model.lm_head.weight.numel())
    tower = sum(
        p.numel() for name, p in model.model.vision_tower.named_parameters() if p.ndim > 1 and "position" not in name
    )
    connector = sum(p.numel() for p in model.model.connector.parameters())
    assert cost.prefill_parameter_bytes == cost.token_parameter_bytes + 4 * (tower + connector)


def test_experts_reached_grow_with_the_tokens():
    weights = StackWeights(dense=100, experts=800, num_experts=8)
    assert weights.active(2) == 300
    assert weights.reached(2, 1) == pytest.approx(300)
    assert weights.reached(2, 1) < weights.reached(2, 3) < weights.reached(2, 10_000) == pytest.approx(900)


def test_unreachable_scale_lists_the_reachable():
    with pytest.raises(ValueError, match=r"100 .*12x12.* 1, 4, 9, 16, 36, 144"):
        CostModel.from_config(make_model("siglip_vision_model", "llama", "linear").config).cost(100, 5)


def test_text_alone_sees_nothing():
    cost = CostModel(make_model("siglip_vision_model", "llama", "linear")).cost(9, 31, images=0)
    assert (cost.visual_tokens, cost.vision_flops, cost.connector_flops) == (0, 0, 0)
