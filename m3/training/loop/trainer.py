"""A thin layer over transformers' Trainer: learning rates by part, weighted token counts,
metrics into the run folder.
"""

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.utils.generic import ModelOutput

from m3.model import M3ForConditionalGeneration, M3Output
from m3.model.packed_sequences import real_tokens
from m3.training.checks.throughput import Meter
from m3.training.loop.distributed import sum_over_processes, union_over_processes, wait_for_everyone
from m3.training.loop.evaluations import AskWhenDue, Evaluation, kept_random_state
from m3.training.loop.left_out import LEFT_OUT, LeftOut
from m3.training.loop.router_load import RouterLoad
from m3.training.loop.row_by_row import average_gradients, row_by_row
from m3.training.loop.run_folder import WHOLE, RunFolder
from m3.training.loop.screen import ScreenLines
from m3.training.recipe.sections import Distil

logger = logging.getLogger(__name__)

Measure = Callable[[Any, float], dict[str, tuple[float, float]]]
"""Turns its own model's output, and the micro-batch's share of the step, into name -> (sum, count),
to be added up over steps and devices and divided when logged."""


class MarkWhole(TrainerCallback):
    """Marks a checkpoint once every process has written all of its part, so that a kill while
    saving cannot pass for one.

    What was measured since the last line of metrics is logged before a checkpoint, so that a
    resumed run lacks nothing.
    """

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs
    ) -> None:
        control.should_log = control.should_log or control.should_save

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs
    ) -> None:
        wait_for_everyone()
        if state.is_world_process_zero:
            assert args.output_dir is not None  # m3/training/loop/hf_arguments.py always names one
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / WHOLE).touch()


class RunTrainer(Trainer):
    """Trainer that knows its run folder.

    `measure` says what to log of every output; `rates` the rate of each parameter.

    `undecayed`: parameters that weight decay leaves alone.
    `low_memory`: the model (within PEFT's) whose rows are read one at a time. `held_out`: how often
    the loss of which batches is measured. `benchmarks`: what is evaluated beside it, and how often.
    `distil`: self-distillation over scales; the batches then name the teachers (`teacher_index`).

    The loss of a step is divided by the sum of `loss_weights` over all its micro-batches and
    devices, and router losses are taken over the whole step (`router`), so that neither
    accumulation nor the number of devices changes the gradient.
    """

    def __init__(
        self,
        *,
        run: RunFolder,
        measure: Measure,
        rates: Mapping[str, float] | None = None,
        undecayed: frozenset[str] = frozenset(),
        router: RouterLoad | None = None,
        low_memory: M3ForConditionalGeneration | None = None,
        distil: Distil | None = None,
        meter: Meter | None = None,
        held_out: tuple[int, Sequence[dict[str, Tensor]]] | None = None,
        benchmarks: Evaluation | None = None,
        **kwargs,
    ) -> None:
        self._held_out = [] if held_out is None else held_out[1]
        own_evaluation = (
            None if held_out is None else Evaluation(held_out[0], self._measure_held_out)
        )
        self._evaluations = [
            known_evaluation
            for known_evaluation in (own_evaluation, benchmarks)
            if known_evaluation is not None
        ]
        callbacks = [*([router] if router else []), AskWhenDue(self._evaluations), MarkWhole()]
        super().__init__(callbacks=[*callbacks, ScreenLines()], **kwargs)
        for own_words in (ProgressCallback, PrinterCallback):
            self.remove_callback(own_words)
        self.run = run
        self._measure = measure
        self._rates, self._undecayed = dict(rates or {}), undecayed
        self._router = router
        if low_memory is not None and self.is_fsdp_enabled:
            raise ValueError(
                "memory: low goes backward several times a step, which FSDP does not take; set it "
                "to packed, with "
                "hardware.activation_checkpointing: true"
            )
        self._low_memory = low_memory
        self._distil = distil
        self._meter = meter
        if benchmarks is not None and self.is_fsdp_enabled:
            raise ValueError(
                "evaluation runs the whole model in every process, which FSDP shards; leave it "
                "out, and sweep the checkpoints"
            )
        self._flops = 0.0
        self._evaluated: tuple[int, dict[str, float]] = (-1, {})
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, float] = defaultdict(float)
        self._step_tokens = 1.0
        self._tokens, self._places, self._since = 0, 0, time.perf_counter()
        self._left_out = LeftOut()

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """One parameter group per rate and kind (decayed or not)."""
        if self.optimizer is not None or not self._rates:
            return super().create_optimizer(model)
        model = self.model if model is None else model
        assert model is not None  # Trainer was given one
        decayed = set(self.get_decay_parameter_names(model)) - self._undecayed
        parameter_groups: dict[tuple[float, bool], list[nn.Parameter]] = defaultdict(list)
        for parameter_name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter_groups[self._rates[parameter_name], parameter_name in decayed].append(
                    parameter
                )
        # Trainer itself passes whatever module it was given
        any_model = cast(PreTrainedModel, model)
        optimiser, optimiser_options = self.get_optimizer_cls_and_kwargs(self.args, any_model)
        self.optimizer = optimiser(
            [
                {
                    "params": parameters,
                    "lr": rate,
                    "weight_decay": self.args.weight_decay if decay else 0.0,
                }
                for (rate, decay), parameters in parameter_groups.items()
            ],
            **optimiser_options,
        )
        return self.optimizer

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """Counts the step's items as Trainer does, but by weight: an image at one of S scales
        counts 1/S.
        """
        batches, item_count = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._left_out.take(batches, self.args.per_device_train_batch_size)
        if item_count is None or not batches or "loss_weights" not in batches[0]:
            return batches, item_count
        weights = [
            batch["loss_weights"][:, 1:][batch["labels"][:, 1:] != -100].sum() for batch in batches
        ]
        tokens = sum(_real_tokens(batch) for batch in batches)
        step_sums = sum_over_processes(torch.tensor([float(sum(weights)), tokens], device=device))
        self._step_tokens = max(float(step_sums[1]), 1.0)
        if self._router is not None:
            self._router.begin(step_sums[1])
        return batches, step_sums[0].clamp(min=1e-12)  # a step may have no target

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Forward and backward of a micro-batch: of all rows at once, or row by row."""
        if self._low_memory is None:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        own_loss = cast(
            nn.Module, self.accelerator.unwrap_model(model)
        )  # past data parallelism, which expects one backward a step

        def read(row: dict[str, Tensor]) -> Tensor:
            with self.compute_loss_context_manager():
                loss = cast(
                    Tensor, self.compute_loss(own_loss, row, num_items_in_batch=num_items_in_batch)
                )
            self.accelerator.backward(loss)
            return loss.detach()

        loss = row_by_row(self._low_memory, self._prepare_inputs(inputs), read)
        if self.accelerator.sync_gradients:
            average_gradients(own_loss)
        return loss

    def evaluate(self, *args: Any, **kwargs) -> dict[str, float]:
        """Run the evaluations that are due at this step, into the run's metrics.

        It changes no random state, and its time is not training's.
        """
        step, began = self.state.global_step, time.perf_counter()
        if self._evaluated[0] == step:  # Trainer asks again at the end of the last pass
            return self._evaluated[1]
        eval_metrics: dict[str, float] = {}
        # generation meets ever new shapes
        with kept_random_state(), torch.compiler.set_stance("force_eager"):
            for evaluation in self._evaluations:
                if step % evaluation.every == 0:
                    eval_metrics |= evaluation.measure(step)
        self._since += time.perf_counter() - began
        self.log(eval_metrics)
        if self.is_world_process_zero():
            self.run.append_metrics({"step": step, **eval_metrics})
        self._evaluated = (step, eval_metrics)
        return eval_metrics

    def _measure_held_out(self, step: int) -> dict[str, float]:
        """The loss of each scale on the held-out batches. Every process reads all of them."""
        model = cast(nn.Module, self.model_wrapped)
        sums, metric_counts = defaultdict[str, float](float), defaultdict[str, float](float)
        model.eval()
        for batch in self._held_out:
            with torch.no_grad(), self.compute_loss_context_manager():
                output = model(**self._prepare_inputs(dict(batch)), skip_logits=True)
            for metric_name, (metric_value, metric_count) in self._measure(output, 1.0).items():
                sums[metric_name], metric_counts[metric_name] = (
                    sums[metric_name] + metric_value,
                    metric_counts[metric_name] + metric_count,
                )
        model.train()
        return {
            f"eval_{metric_name}": round(sums[metric_name] / metric_counts[metric_name], 6)
            for metric_name in sorted(sums)
            if metric_name.startswith("loss_")
        }

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, ModelOutput]:
        """The model's own loss; what `measure` finds in its output is kept for the next line of
        metrics.
        """
        if self._router is not None:
            router_step = self._router.step
            inputs = inputs | {"router_load": router_step.load, "router_tokens": router_step.tokens}
        if self._distil is not None:
            inputs = inputs | {
                "distil_weight": self._distil.weight,
                "distil_temperature": self._distil.temperature,
            }
        loss_output = super().compute_loss(
            model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        loss, outputs = cast(tuple[Tensor, ModelOutput], loss_output)  # since return_outputs is set
        if model.training:
            self._note(outputs, inputs)
        return (loss, outputs) if return_outputs else loss

    def _note(self, outputs: ModelOutput, inputs: Mapping[str, Tensor]) -> None:
        """Keeps what is logged of a micro-batch, and its experts' load."""
        tokens = _real_tokens(inputs) if "input_ids" in inputs else 1
        for metric_name, (metric_value, metric_count) in self._measure(
            outputs, tokens / self._step_tokens
        ).items():
            self._sums[metric_name] += metric_value
            self._counts[metric_name] += metric_count
        if self._router is not None:
            assert isinstance(outputs, M3Output)  # only a decoder with experts has a router
            self._router.add(outputs, float(tokens))
        if "input_ids" in inputs:
            row_ids = inputs["input_ids"]
            if self.state.global_step == 0 and self._places == 0 and self.is_world_process_zero():
                fill = tokens / row_ids.numel()
                logger.info(
                    "first batch: %d rows of %d places, %.1f %% of them filled",
                    *row_ids.shape,
                    100 * fill,
                )
            self._tokens += tokens
            self._places += row_ids.numel()
            if self._meter is not None:
                tile_count = inputs["pixel_values"].shape[0] if "pixel_values" in inputs else 0
                self._flops += self._meter.flops(tokens, tile_count)

    def log(self, logs: dict[str, float | int], start_time: float | None = None) -> None:
        """Adds the measured means and the speed; the screen leaves out the router's, the run's
        metrics have all.
        """
        if "loss" in logs:
            self._check_finite(logs)
        step_metrics = self._collect() if "loss" in logs else {}
        super().log(
            logs
            | {
                metric_name: metric_value
                for metric_name, metric_value in step_metrics.items()
                if "/" not in metric_name
            },
            start_time,
        )
        if self.is_world_process_zero() and "loss" in logs:
            self.run.append_metrics({"step": self.state.global_step, **logs, **step_metrics})

    def _check_finite(self, logs: Mapping[str, float | int]) -> None:
        """Every process has the same numbers, so all of them stop; a step is logged before it is
        saved.
        """
        for metric_name, metric_words in (
            ("loss", "the loss"),
            ("grad_norm", "the norm of the gradient"),
        ):
            metric_value = float(logs.get(metric_name, 0.0))
            if not math.isfinite(metric_value):
                checkpoint = self.run.newest_checkpoint()
                raise ValueError(
                    f"step {self.state.global_step}: {metric_words} is {metric_value}; nothing of "
                    "it was saved, and the newest checkpoint is "
                    f"{checkpoint or 'none: there is no checkpoint yet'}. Lower the rates of parts, "
                    "lengthen optimiser.warmup or lower optimiser.max_grad_norm, in a new run "
                    "(run=FOLDER)"
                )

    def run_to_end(self, save: Callable[[str], None] | None = None) -> None:
        """Trains from the newest whole checkpoint (or the start), then writes `checkpoints/final`,
        whole or not at all.

        `save` writes what the run is for into a folder; by default the model and its processor. It
        runs on every rank.
        """
        checkpoint = self.run.newest_checkpoint()
        wait_for_everyone()  # all of them looked before the first goes on to write
        if self.is_world_process_zero():
            self.run.drop_metrics_after(checkpoint)
        if checkpoint is not None and self._router is not None:
            self._router.restore(checkpoint)
        self.train(resume_from_checkpoint=checkpoint)
        for left_name in LEFT_OUT:
            left_total = sum(
                int(metric_row.get(left_name, 0)) for metric_row in self.run.read_metrics()
            )
            if left_total and self.is_world_process_zero():
                logger.warning(
                    "%s over the whole run: %d samples (m3 data check names them)",
                    left_name,
                    left_total,
                )
        partial_folder = self.run.checkpoints / ".final"
        (save or self.save_model)(str(partial_folder))
        wait_for_everyone()
        if self.is_world_process_zero():
            partial_folder.replace(self.run.final)
        wait_for_everyone()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As Trainer's own; what is saved for use, not to resume from, holds no pickle of the
        arguments.
        """
        super().save_model(output_dir, _internal_call)
        if not _internal_call and output_dir is not None and self.is_world_process_zero():
            (Path(output_dir) / TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def _collect(self) -> dict[str, float | int]:
        # a rank whose batches had no image lacks the scales
        metric_names = union_over_processes(self._sums)
        metric_sums = [[self._sums[n], self._counts[n]] for n in metric_names]
        metric_sums += [[float(self._tokens), float(self._places)], [self._flops, 0.0]]
        table = sum_over_processes(torch.tensor(metric_sums, device=self.args.device)).cpu()
        elapsed, (tokens, place_count) = time.perf_counter() - self._since, table[-2].tolist()
        summed_rows = zip(metric_names, table[:-2].tolist(), strict=True)
        metric_means = {
            metric_name: round(float(s / c), 6) for metric_name, (s, c) in summed_rows if c
        }
        self._sums.clear()
        self._counts.clear()
        self._tokens, self._places, self._flops, self._since = 0, 0, 0.0, time.perf_counter()
        speed = (
            {
                "tokens_per_second": round(tokens / elapsed, 1),
                "row_fill": round(tokens / place_count, 4),
            }
            if tokens
            else {}
        )
        if self._meter is not None:
            speed["mfu"] = round(
                float(table[-1, 0]) / (elapsed * self._meter.peak * self.args.world_size), 4
            )
        return {
            **metric_means,
            **speed,
            **self._left_out.collect(self.state.global_step, self.args.device),
        }


def _real_tokens(batch: Mapping[str, Tensor]) -> int:
    """Tokens of a batch that are no padding."""
    return int(
        real_tokens(
            batch["input_ids"], batch.get("attention_mask"), batch.get("sequence_lengths")
        ).sum()
    )
