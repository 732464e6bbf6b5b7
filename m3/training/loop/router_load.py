"""The load of every expert over a whole optimiser step, which the balance loss of the next one is
taken against.

The micro-batches of a step, and its devices, must agree on one load before the first of them goes
backward; that of the step before is known (see m3/model/router_losses.py). It is saved with every
checkpoint, so that a resumed run is exact.
"""

import json
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from m3.model import M3Output
from m3.model.router_losses import RouterStep
from m3.training.loop.distributed import sum_over_processes

FILE = "router_load.json"


class RouterLoad(TrainerCallback):
    """Counts the choices of a step; `load [layers, experts]` is that of the step before, even
    before the first.
    """

    def __init__(self, layers: int, experts: int, device: torch.device) -> None:
        self.load: Float[Tensor, "layers experts"] = torch.full(
            (layers, experts), 1 / experts, device=device
        )
        self._chosen = torch.zeros_like(self.load)
        self._tokens = torch.ones((), device=device)

    @property
    def step(self) -> RouterStep:
        """Router statistics of the step under way, for the model's losses."""
        return RouterStep(self.load, self._tokens)

    def begin(self, tokens: Tensor) -> None:
        """A step of so many real tokens, over all micro-batches and devices."""
        self._tokens = tokens.clamp(min=1)

    def add(self, output: M3Output, tokens: float) -> None:
        """Counts what a micro-batch of so many real tokens chose."""
        assert output.expert_load is not None  # of a mixture of experts, always
        self._chosen += output.expert_load * tokens

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs
    ) -> None:
        chosen_counts = sum_over_processes(self._chosen)
        self._chosen.zero_()
        if chosen_counts.sum() > 0:
            self.load = chosen_counts / chosen_counts.sum(-1, keepdim=True)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs
    ) -> None:
        if state.is_world_process_zero:
            assert args.output_dir is not None  # m3/training/loop/hf_arguments.py always names one
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / FILE).write_text(
                json.dumps(self.load.tolist())
            )

    def restore(self, checkpoint: str) -> None:
        """As it was when the checkpoint was saved."""
        saved_load = json.loads((Path(checkpoint) / FILE).read_text())
        self.load = torch.tensor(saved_load, device=self.load.device)
