"""Published training loop over scales, the reference for benches and tests of ours.

`llava/model/language_model/llava_llama.py` of M3 (https://github.com/mu-cai/matryoshka-mm): for
each scale the vision tower, the connector and the decoder run on the padded batch; the losses are
averaged; one backward pass goes through all.
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
    """One padded batch per scale with an attention mask and its own copy of the pixels."""
    batches = [
        Collator(processor, scales=(scale,), max_length=max_length)(samples) for scale in scales
    ]
    return [
        {name: value for name, value in batch.items() if name != "sequence_lengths"}
        for batch in batches
    ]


def published_loss(
    model: M3ForConditionalGeneration, batches: Sequence[dict[str, Tensor]]
) -> Tensor:
    """Mean over scales of the language loss, plus router losses over all scales together."""
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
    router_terms = router_losses(logits, top_k, is_real)
    return (
        loss
        + model.config.router_balance_coef * router_terms.balance.sum()
        + model.config.router_z_coef * router_terms.z.sum()
    )


def whole_logits_loss(model: M3ForConditionalGeneration, batch: dict[str, Tensor]) -> Tensor:
    """Shifted cross entropy of float32 logits at all positions, as `LlamaForCausalLM.forward`."""
    inputs = {
        name: value for name, value in batch.items() if name not in ("labels", "loss_weights")
    }
    logits = model(**inputs).logits.float()[:, :-1]
    return cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100)
