"""`memory: low`: the tower sees every image once, then the rows of a batch are read one at a time.

A packed batch of all scales keeps the decoder's activations of all its rows until its one backward.
Here each row goes forward and backward by itself, its gradient with respect to the visual tokens is
added up, and the tower's backward comes last, once. What is alive at a time is the tower and one
row. The loss is a sum over tokens divided by that of the whole step, and router losses are linear
in the tokens (m3/model/router_losses.py), so the gradients are those of the joint step.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from m3.model import M3ForConditionalGeneration
from m3.model.image_inputs import IMAGE_INPUTS, ImageInputs
from m3.training.distributed import sum_over_processes, world

OF_ROWS = (
    "input_ids",
    "labels",
    "position_ids",
    "sequence_lengths",
    "loss_weights",
    "attention_mask",
)
OF_SPANS = ("image_scales", "image_index")


def row_by_row(
    base: M3ForConditionalGeneration,
    batch: Mapping[str, Tensor],
    read: Callable[[dict[str, Tensor]], Tensor],
) -> Tensor:
    """Forward and backward of a batch; the sum of the rows' losses.

    `read` computes the loss of one row, goes backward from it, and returns it detached.
    """
    features = None
    if "pixel_values" in batch:
        features = base.get_image_features(
            batch["pixel_values"], batch.get("pixel_mask")
        ).pooler_output
        assert features is not None  # get_image_features always gives it
    leaf = None if features is None else features.detach().requires_grad_(features.requires_grad)
    losses = [read(row) for row in split_rows(base, batch, leaf)]
    if features is not None and leaf is not None and leaf.grad is not None:
        features.backward(leaf.grad)
    return torch.stack(losses).sum()


def split_rows(
    base: M3ForConditionalGeneration, batch: Mapping[str, Tensor], features: Tensor | None
) -> Iterator[dict[str, Tensor]]:
    """The rows as batches of their own, all reading the same `features`."""
    token = base.config.image_token_id
    shown = {
        name: batch[name]
        for name in IMAGE_INPUTS
        if name in batch and name not in (*OF_SPANS, "pixel_values", "pixel_mask")
    }
    spans = ImageInputs(**{name: batch.get(name) for name in IMAGE_INPUTS}).spans(
        base.config.reader
    )
    ends = torch.tensor([span.count for span in spans], dtype=torch.long).cumsum(0)
    row_ends = (batch["input_ids"] == token).sum(1).cumsum(0).cpu()
    row_of_span = torch.searchsorted(row_ends, ends).to(batch["input_ids"].device)
    for number in range(len(batch["input_ids"])):
        row = {name: batch[name][number : number + 1] for name in OF_ROWS if name in batch}
        if "attention_mask" in row:
            length = int(row["attention_mask"].sum())
            row = {
                name: value if name == "sequence_lengths" else value[:, :length]
                for name, value in row.items()
            }
        if features is not None and bool((row_of_span == number).any()):
            row |= {name: batch[name][row_of_span == number] for name in OF_SPANS}
            row |= shown | {"image_features": features}
        yield row


def average_gradients(model: nn.Module) -> None:
    """The mean over processes, as data parallelism would make it in its own backward, of which
    there are several here.
    """
    if world().size == 1:
        return
    for parameter in model.parameters():
        if parameter.requires_grad:
            own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = sum_over_processes(own) / world().size
