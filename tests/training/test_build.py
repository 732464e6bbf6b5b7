"""Building what a recipe names: the model and its processor agree on what is padding."""

import copy

import torch

from m3.data.collate import Collator
from m3.training.build import train_at


def test_what_rows_are_filled_with_has_no_part_in_router_losses(make_tuned, processor, samples) -> None:
    """Padding is known by its place, whatever token it is made of: also where the tokenizer pads with what ends a sequence."""
    model, processor = make_tuned("aria_text"), copy.deepcopy(processor)  # train_at changes its scales
    model.config.text_config.pad_token_id = None
    train_at(model, processor, (1, 9))
    assert model.config.text_config.pad_token_id == processor.tokenizer.pad_token_id
    short, long = (
        model(**Collator(processor, scales=(1, 9), pack_length=512, pad_to_multiple_of=multiple)(samples[:1]))
        for multiple in (8, 256)
    )
    assert torch.allclose(short.z_losses, long.z_losses, rtol=1e-5)
    assert torch.allclose(short.expert_load, long.expert_load)
