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
from m3.training.loop.distributed import sum_over_processes, world

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
    losses = [read(batch_row) for batch_row in split_rows(base, batch, leaf)]
    if features is not None and leaf is not None and leaf.grad is not None:
        features.backward(leaf.grad)
    return torch.stack(losses).sum()


def split_rows(
    base: M3ForConditionalGeneration, batch: Mapping[str, Tensor], features: Tensor | None
) -> Iterator[dict[str, Tensor]]:
    """The rows as batches of their own, all reading the same `features`."""
    token = base.config.image_token_id
    image_inputs = {
        input_name: batch[input_name]
        for input_name in IMAGE_INPUTS
        if input_name in batch and input_name not in (*OF_SPANS, "pixel_values", "pixel_mask")
    }
    spans = ImageInputs(**{input_name: batch.get(input_name) for input_name in IMAGE_INPUTS}).spans(
        base.config.reader
    )
    ends = torch.tensor([span.count for span in spans], dtype=torch.long).cumsum(0)
    row_ends = (batch["input_ids"] == token).sum(1).cumsum(0).cpu()
    row_of_span = torch.searchsorted(row_ends, ends).to(batch["input_ids"].device)
    for row_number in range(len(batch["input_ids"])):
        row_inputs = {
            input_name: batch[input_name][row_number : row_number + 1]
            for input_name in OF_ROWS
            if input_name in batch
        }
        if "attention_mask" in row_inputs:
            row_length = int(row_inputs["attention_mask"].sum())
            row_inputs = {
                input_name: row_value
                if input_name == "sequence_lengths"
                else row_value[:, :row_length]
                for input_name, row_value in row_inputs.items()
            }
        if features is not None and bool((row_of_span == row_number).any()):
            row_inputs |= {
                input_name: batch[input_name][row_of_span == row_number] for input_name in OF_SPANS
            }
            row_inputs |= image_inputs | {"image_features": features}
        yield row_inputs


def average_gradients(model: nn.Module) -> None:
    """The mean over processes, as data parallelism would make it in its own backward, of which
    there are several here.
    """
    if world().size == 1:
        return
    for parameter in model.parameters():
        if parameter.requires_grad:
            own_gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = sum_over_processes(own_gradient) / world().size
