"""The published way to train over scales, kept as the reference that ours is measured and tested
against.

`llava/model/language_model/llava_llama.py` of M3 (https://github.com/mu-cai/matryoshka-mm): for
each scale the vision tower, the connector and the decoder run on the padded batch; the losses are
averaged; one backward goes through all.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from m3.data.collate import Collator
from m3.data.sample import Sample
from m3.model import M3ForConditionalGeneration
from m3.model.router_losses import router_losses
from m3.processing import M3Processor


def published_batches(
    samples: Sequence[Sample],
    processor: M3Processor,
    scales: Sequence[int],
    max_length: int | None = None,
) -> list[dict[str, Tensor]]:
    """One padded batch per scale, each with its own copy of the pixels; a mask says what is
    padding, as in the original.
    """
    batches = [
        Collator(processor, scales=(scale,), max_length=max_length)(samples) for scale in scales
    ]
    return [
        {
            input_name: input_value
            for input_name, input_value in batch.items()
            if input_name != "sequence_lengths"
        }
        for batch in batches
    ]


def published_loss(
    model: M3ForConditionalGeneration, batches: Sequence[dict[str, Tensor]]
) -> Tensor:
    """The mean over scales of the language loss; the router losses, which M3's dense decoder has
    not, over all together.
    """
    top_k = model.model.router_top_k
    if top_k is None:
        return torch.stack([whole_logits_loss(model, batch) for batch in batches]).mean()
    outputs = [model(**batch) for batch in batches]
    loss = torch.stack([output.language_loss for output in outputs]).mean()
    logits = tuple(
        torch.cat(layers)
        for layers in zip(*(output.router_logits for output in outputs), strict=True)
    )
    is_real = torch.cat([batch["attention_mask"].flatten().bool() for batch in batches])
    routers = router_losses(logits, top_k, is_real)
    return (
        loss
        + model.config.router_balance_coef * routers.balance.sum()
        + model.config.router_z_coef * routers.z.sum()
    )


def whole_logits_loss(model: M3ForConditionalGeneration, batch: dict[str, Tensor]) -> Tensor:
    """As `LlamaForCausalLM.forward`, which M3's loop calls: logits of all places in float32,
    then the shifted cross entropy.
    """
    inputs = {
        input_name: input_value
        for input_name, input_value in batch.items()
        if input_name not in ("labels", "loss_weights")
    }
    logits = model(**inputs).logits.float()[:, :-1]
    return cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100)
