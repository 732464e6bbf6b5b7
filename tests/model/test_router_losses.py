"""Router losses: values at the extremes, padding, gradients, and agreement with transformers'
own balance loss.
"""

import pytest
import torch
from tiny_models import MOE, batch, make_model, prompt
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from m3.model.router_losses import router_losses

EVERY = torch.ones(64, dtype=torch.bool)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_balanced_is_one_and_collapsed_is_experts_over_top_k(top_k: int) -> None:
    turns = torch.arange(64)[:, None] + torch.arange(8)[None]
    # every expert is chosen equally often, at nearly equal probability
    balanced = -(turns % 8).float() * 1e-3
    losses = router_losses((balanced, balanced), top_k, EVERY)
    torch.testing.assert_close(losses.balance, torch.ones(2), rtol=1e-3, atol=0)
    torch.testing.assert_close(losses.expert_load, torch.full((2, 8), 1 / 8))
    collapsed = torch.zeros(64, 8)
    collapsed[:, :top_k] = 50
    torch.testing.assert_close(
        router_losses((collapsed,), top_k, EVERY).balance, torch.tensor([8 / top_k])
    )


def test_one_layer_equals_transformers_up_to_its_factor_of_top_k() -> None:
    logits = torch.randn(64, 8)
    theirs = load_balancing_loss_func((logits,), num_experts=8, top_k=2)
    torch.testing.assert_close(router_losses((logits,), 2, EVERY).balance[0] * 2, theirs)


def test_z_loss_is_the_mean_squared_logsumexp() -> None:
    logits = torch.randn(64, 8)
    torch.testing.assert_close(
        router_losses((logits,), 2, EVERY).z[0], logits.logsumexp(-1).square().mean()
    )


def test_padding_counts_for_nothing() -> None:
    logits, is_real = torch.randn(64, 8, requires_grad=True), torch.arange(64) < 40
    ours, alone = router_losses((logits,), 2, is_real), router_losses((logits[:40],), 2, EVERY[:40])
    for name in ("balance", "z", "expert_load"):
        torch.testing.assert_close(getattr(ours, name), getattr(alone, name))
    (ours.balance.sum() + ours.z.sum()).backward()
    assert logits.grad[40:].abs().max() == 0 < logits.grad[:40].abs().max()


def test_a_batch_that_is_all_padding_has_losses_of_zero() -> None:
    losses = router_losses((torch.randn(4, 8),), 2, torch.zeros(4, dtype=torch.bool))
    assert losses.balance.tolist() == losses.z.tolist() == [0.0]


@pytest.mark.parametrize("decoder", MOE)
def test_a_batch_without_a_target_trains_nothing_and_is_finite(decoder: str) -> None:
    model = make_model(decoder=decoder).train()
    rows = batch([[5, 6, 7]])
    nothing = {"labels": torch.full((1, 3), -100), "loss_weights": torch.zeros(1, 3)}
    loss = model(
        input_ids=rows["input_ids"], sequence_lengths=torch.zeros(1, 1, dtype=torch.long), **nothing
    ).loss
    loss.backward()
    assert loss.item() == 0
    assert all(
        torch.isfinite(p.grad).all() and p.grad.abs().max() == 0
        for p in model.parameters()
        if p.grad is not None
    )


@pytest.mark.parametrize("decoder", MOE)
def test_reported_per_layer_with_load(decoder: str, pixels: torch.Tensor) -> None:
    model = make_model(decoder=decoder)
    inputs = batch([prompt(4, 10, 11)])
    output = model(
        **inputs,
        pixel_values=pixels[:1],
        image_scales=torch.tensor([4]),
        labels=inputs["input_ids"],
    )
    assert output.balance_losses.shape == output.z_losses.shape == (2,)
    assert output.expert_load.shape == (2, 4)
    torch.testing.assert_close(output.expert_load.sum(1), torch.ones(2))
    added = 0.1 * output.balance_losses.sum() + 0.01 * output.z_losses.sum()
    torch.testing.assert_close(output.loss - output.language_loss, added, rtol=1e-4, atol=1e-5)
