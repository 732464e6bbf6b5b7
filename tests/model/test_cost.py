"""The cost formulas against torch's own counter, for every kind of decoder, tower and connector,
and against print.
"""

import pytest
import torch
from tiny_models import DECODERS, IMAGE, VISION, make_connector, make_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

from m3.model import M3Config, M3ForConditionalGeneration
from m3.model.connectors import CONNECTORS
from m3.model.cost import Cost, CostModel, StackWeights
from m3.model.vision import vision_inputs

# Every decoder with every tower, then every connector once.
CASES = [(vision, decoder, "mlp2x_gelu") for vision in VISION for decoder in DECODERS]
CASES += [("clip_vision_model", "qwen3", kind) for kind in CONNECTORS if kind != "mlp2x_gelu"]


def countable(vision: str, decoder: str, connector: str) -> M3ForConditionalGeneration:
    """In the way of computing that the counter has rules for: it has none for fused attention or
    grouped products on a CPU.
    """
    model = make_model(vision=vision, decoder=decoder, **make_connector(connector))
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")
    # the counter fails on a slice of a parameter that has gradients
    return model.requires_grad_(False)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("vision", "decoder", "connector"), CASES)
@torch.no_grad()
def test_flops_are_within_one_percent_of_the_counter(
    vision: str, decoder: str, connector: str, batch: int
):
    model = countable(vision, decoder, connector)
    scale, text = 9, 31
    cost = CostModel(model).cost(scale, text, batch_size=batch)
    size = vision_inputs(model.config.vision_config).image_size(model.config.vision_config)

    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        features = model.get_image_features(torch.rand(batch, 3, *size)).pooler_output
    assert cost.vision_flops + cost.connector_flops == pytest.approx(
        counter.get_total_flops(), rel=0.01
    )

    ids = torch.cat([torch.full((batch, scale), IMAGE), torch.randint(5, 90, (batch, text))], dim=1)
    scales = torch.tensor([scale] * batch)
    with FlopCounterMode(display=False) as counter:
        prefill = model(
            ids, image_features=features, image_scales=scales, use_cache=True, logits_to_keep=1
        )
    assert cost.prefill_flops == pytest.approx(counter.get_total_flops(), rel=0.01)
    cached = [
        tensor for layer in prefill.past_key_values.layers for tensor in (layer.keys, layer.values)
    ]
    assert cost.kv_cache_bytes == sum(tensor.numel() * tensor.element_size() for tensor in cached)
    assert cost.visual_tokens + cost.text_tokens == ids.shape[1]

    with FlopCounterMode(display=False) as counter:
        model(torch.full((batch, 1), 7), past_key_values=prefill.past_key_values, use_cache=True)
    assert cost.token_flops == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_published_prefill_of_llava_7b():
    """M3's Table 9 (LLaVA-1.5-7B, 30 text tokens, decoder alone): 8.0, 2.2, 0.9, 0.5, 0.4 TFLOP;
    KV cache by arithmetic.
    """
    config = M3Config(
        vision_config=AutoConfig.for_model("clip_vision_model", hidden_size=1024, intermediate_size=4096,
                                           num_hidden_layers=24, num_attention_heads=16, image_size=336, patch_size=14),
        text_config=AutoConfig.for_model("llama", vocab_size=32000, hidden_size=4096, intermediate_size=11008,
                                         num_hidden_layers=32, num_attention_heads=32, pad_token_id=0),
        drop_class_token=True, vision_feature_layer=-2,
    )  # fmt: skip
    formulas = CostModel.from_config(config, torch.float16)
    tera = [formulas.cost(scale, 30).prefill_flops / 1e12 for scale in (576, 144, 36, 9, 1)]
    assert tera == pytest.approx([8.0, 2.2, 0.9, 0.5, 0.4], abs=0.1)
    assert formulas.parameters == pytest.approx(7.06e9, rel=0.001)
    assert formulas.cost(576, 30).kv_cache_bytes == 606 * 32 * 2 * 4096 * 2
    assert formulas.cost(576, 30).connector_flops == pytest.approx(24e9, rel=0.01)


def test_from_config_allocates_nothing_and_agrees():
    model = countable("siglip_vision_model", "aria_text", "mlp2x_gelu")
    assert CostModel.from_config(model.config).cost(36, 20) == CostModel(model).cost(36, 20)
    half = CostModel.from_config(model.config, torch.bfloat16).cost(36, 20)
    assert half.kv_cache_bytes * 2 == CostModel(model).cost(36, 20).kv_cache_bytes


def read(cost: Cost) -> int:
    return (
        cost.vision_parameter_bytes + cost.connector_parameter_bytes + cost.prefill_parameter_bytes
    )


def test_bytes_read_count_the_parameters():
    """Dense: a prefill reads every matrix of the model, a token those of the decoder and the
    head, whatever the batch.
    """
    model = countable("siglip_vision_model", "llama", "mlp2x_gelu")
    cost = CostModel(model).cost(9, 31)
    decoder = sum(p.numel() for p in model.model.language_model.layers.parameters() if p.ndim > 1)
    assert cost.token_parameter_bytes == 4 * (decoder + model.lm_head.weight.numel())
    tower = sum(
        p.numel()
        for name, p in model.model.vision_tower.named_parameters()
        if p.ndim > 1 and "position" not in name
    )
    connector = sum(p.numel() for p in model.model.connector.parameters())
    assert read(cost) == cost.token_parameter_bytes + 4 * (tower + connector)
    assert read(CostModel(model).cost(9, 31, batch_size=5)) == read(cost)


def test_a_batch_of_a_mixture_reads_more_experts():
    formulas = CostModel(countable("siglip_vision_model", "aria_text", "mlp2x_gelu"))
    one, many = formulas.cost(9, 31), formulas.cost(9, 31, batch_size=64)
    assert many.token_flops == 64 * one.token_flops
    assert one.token_parameter_bytes < many.token_parameter_bytes < 2 * one.token_parameter_bytes
    assert many.token_parameter_bytes == pytest.approx(one.prefill_parameter_bytes, rel=1e-3)


def test_experts_reached_grow_with_the_tokens():
    weights = StackWeights(dense=100, experts=800, num_experts=8)
    assert weights.active(2) == weights.reached(2, 1) == 300
    assert weights.reached(2, 2) == 100 + 800 * (1 - 0.75**2)
    assert weights.reached(2, 1) < weights.reached(2, 3) < weights.reached(2, 10_000) == 900


def test_unreachable_scale_lists_the_reachable():
    with pytest.raises(ValueError, match=r"100 .*12x12.* 1, 4, 9, 16, 36, 144"):
        CostModel.from_config(make_model(decoder="llama").config).cost(100, 5)


def test_text_alone_sees_nothing():
    cost = CostModel(make_model(decoder="llama")).cost(9, 31, images=0)
    assert (
        cost.visual_tokens,
        cost.vision_flops,
        cost.connector_flops,
        cost.vision_parameter_bytes,
    ) == (0, 0, 0, 0)
