"""A thin layer over transformers' Trainer: learning rates by part, weighted token counts, metrics into the run folder."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils.generic import ModelOutput

from m3.training.run_folder import WHOLE, RunFolder

logger = logging.getLogger(__name__)

LEFT_OUT = ("left_out_broken", "left_out_too_long")
"""Names in the metrics of what a batch's `left_out` counts (m3/data/collate.py)."""

Measure = Callable[[Any], dict[str, tuple[float, float]]]
"""Turns its own model's output into name -> (sum, count), to be added up over steps and devices and divided when logged."""


class MarkWhole(TrainerCallback):
    """Marks a checkpoint once all of it is written, so that a kill while saving cannot pass for one.

    What was measured since the last line of metrics is logged before a checkpoint, so that a resumed run lacks nothing.
    """

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        control.should_log = control.should_log or control.should_save

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if state.is_world_process_zero:
            assert args.output_dir is not None  # m3/training/arguments.py always names one
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / WHOLE).touch()


class RunTrainer(Trainer):
    """Trainer that knows its run folder. `measure` says what to log of every output; `rates` the rate of each prefix.

    The loss of a step is divided by the sum of `loss_weights` over all its micro-batches and devices, so that neither
    accumulation nor the number of devices changes the gradient.
    """

    def __init__(self, *, run: RunFolder, measure: Measure, rates: Mapping[str, float] | None = None, **kwargs) -> None:
        super().__init__(callbacks=[MarkWhole()], **kwargs)
        self.run = run
        self._measure = measure
        self._rates = dict(rates or {})
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, float] = defaultdict(float)
        self._tokens, self._since = 0, time.perf_counter()
        self._left_out: Tensor | None = None  # int64 [2] once a batch says it

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """One parameter group per part and kind (decayed or not), each at its part's learning rate."""
        if self.optimizer is not None or not self._rates:
            return super().create_optimizer(model)
        model = self.model if model is None else model
        assert model is not None  # Trainer was given one
        decayed = set(self.get_decay_parameter_names(model))
        groups: dict[tuple[str, bool], list[nn.Parameter]] = defaultdict(list)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                part = next(prefix for prefix in self._rates if name.startswith(prefix))
                groups[part, name in decayed].append(parameter)
        any_model = cast(PreTrainedModel, model)  # Trainer itself passes whatever module it was given
        optimiser, options = self.get_optimizer_cls_and_kwargs(self.args, any_model)
        self.optimizer = optimiser(
            [
                {
                    "params": parameters,
                    "lr": self._rates[part],
                    "weight_decay": self.args.weight_decay if decay else 0.0,
                }
                for (part, decay), parameters in groups.items()
            ],
            **options,
        )
        return self.optimizer

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """Counts the step's items as Trainer does, but by weight: an image at one of S scales counts 1/S."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        for batch in batches:
            if "left_out" in batch:  # m3/data/collate.py: what the data lacks is no input of the model
                found = batch.pop("left_out").cpu()
                self._left_out = found if self._left_out is None else self._left_out + found
        if items is None or not batches or "loss_weights" not in batches[0]:
            return batches, items
        weights = [batch["loss_weights"][:, 1:][batch["labels"][:, 1:] != -100].sum() for batch in batches]
        total = torch.stack(weights).sum().to(device)
        if self.args.world_size > 1:
            total = cast(Tensor, self.accelerator.gather(total)).sum()  # of a tensor, a tensor
        return batches, total

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, ModelOutput]:
        """The model's own loss; what `measure` finds in its output is kept for the next line of metrics."""
        both = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        loss, outputs = cast(tuple[Tensor, ModelOutput], both)  # since return_outputs is set
        if model.training:
            for name, (value, count) in self._measure(outputs).items():
                self._sums[name] += value
                self._counts[name] += count
            if "input_ids" in inputs:
                self._tokens += inputs["input_ids"].numel()
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float | int], start_time: float | None = None) -> None:
        """Adds the measured means and the speed; the screen leaves out the router's, the run's metrics have all."""
        found = self._collect() if "loss" in logs else {}
        super().log(logs | {name: value for name, value in found.items() if "/" not in name}, start_time)
        if self.is_world_process_zero() and "loss" in logs:
            self.run.append_metrics({"step": self.state.global_step, **logs, **found})

    def run_to_end(self, save: Callable[[str], None] | None = None) -> None:
        """Trains from the newest whole checkpoint (or the start), then writes `checkpoints/final`, whole or not at all.

        `save` writes what the run is for into a folder; by default the model and its processor. It runs on every rank.
        """
        self.train(resume_from_checkpoint=self.run.resume_point())
        for name in LEFT_OUT:
            total = sum(int(row.get(name, 0)) for row in self.run.read_metrics())
            if total and self.is_world_process_zero():
                logger.warning("%s over the whole run: %d samples (m3 data check names them)", name, total)
        aside = self.run.checkpoints / ".final"
        (save or self.save_model)(str(aside))
        if self.is_world_process_zero():
            aside.replace(self.run.final)

    def _collect(self) -> dict[str, float]:
        names = sorted(self._sums)
        table = torch.tensor([[self._sums[n], self._counts[n]] for n in names], dtype=torch.float64)
        elapsed, tokens = time.perf_counter() - self._since, self._tokens * self.args.world_size
        if self.args.world_size > 1 and names:
            added = self.accelerator.reduce(table.to(self.args.device).float(), reduction="sum")
            table = cast(Tensor, added).cpu()  # of a tensor, a tensor
        means = {name: round(float(s / c), 6) for name, (s, c) in zip(names, table.tolist(), strict=True) if c}
        self._sums.clear()
        self._counts.clear()
        self._tokens, self._since = 0, time.perf_counter()
        speed = {"tokens_per_second": round(tokens / elapsed, 1)} if tokens else {}
        return means | speed | self._collect_left_out()

    def _collect_left_out(self) -> dict[str, float]:
        """Samples of all devices since the last line, where the recipe allows any to be left out."""
        if self._left_out is None:
            return {}
        counts = self._left_out
        if self.args.world_size > 1:
            added = self.accelerator.reduce(counts.to(self.args.device), reduction="sum")
            counts = cast(Tensor, added).cpu()  # of a tensor, a tensor
        self._left_out = torch.zeros_like(counts)
        return dict(zip(LEFT_OUT, counts.tolist(), strict=True))
