"""Metrics of every training step: the loss of each scale, the divergence from the largest, the
router's losses and load.

The objective itself lives in `M3ForConditionalGeneration.forward`: packed over scales by
m3/data/multiscale.py, the weighted mean over label tokens is the average over scales of M3
(https://arxiv.org/abs/2405.17430, eq. 1).
"""

from m3.model import M3Output
from m3.nesting import Budget


def measure(output: M3Output, share: float) -> dict[str, tuple[float, float]]:
    """name -> (sum, count).

    Losses are per label token; balance, z and load are means over steps, per layer.

    `share`: of the step's tokens that this micro-batch holds; its router losses are parts of the
        step's already.
    """
    step_metrics: dict[str, tuple[float, float]] = {}
    if (
        output.scales is not None
        and output.resolutions is not None
        and output.scale_loss_sums is not None
        and output.scale_loss_counts is not None
    ):
        scale_rows = zip(
            output.scales.tolist(),
            output.resolutions.tolist(),
            output.scale_loss_sums.tolist(),
            output.scale_loss_counts.tolist(),
            strict=True,
        )
        for scale, resolution, loss, token_count in scale_rows:
            budget = Budget(scale, resolution or None)
            step_metrics[f"loss_scale_{budget}" if scale else "loss_text"] = (
                loss,
                float(token_count),
            )
    if output.distil_loss_sum is not None and output.distil_loss_count is not None:
        step_metrics["distil_loss"] = (
            float(output.distil_loss_sum),
            float(output.distil_loss_count),
        )
    if (
        output.balance_losses is not None
        and output.z_losses is not None
        and output.expert_load is not None
    ):
        layers = zip(
            output.balance_losses.tolist(),
            output.z_losses.tolist(),
            output.expert_load.tolist(),
            strict=True,
        )
        for layer, (balance, z, load) in enumerate(layers):
            step_metrics[f"router/balance_{layer}"] = (balance, share)
            step_metrics[f"router/z_{layer}"] = (z, share)
            step_metrics |= {
                f"router/load_{layer}_{expert}": (part * share, share)
                for expert, part in enumerate(load)
            }
    return step_metrics
