"""Streaming: steps from tensors of one checkpoint to tensors of another, checked without weights,
then run one by one.

in: parts of a checkpoint (layout and key map of each) or a target, and tensors to read; out: a
`Plan`, and from it a folder of safetensors shards. Every step first runs on the meta device, so
that each missing, unexpected or misshapen tensor is known before a byte is written. Then memory
holds one shard and one step's tensors, whatever the model's size.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor
from tqdm import tqdm

from m3.checkpoints.base import Foreign, Part
from m3.checkpoints.conversion import Named, Read, Step, renaming
from m3.checkpoints.weights import INDEX, TensorSource, nbytes, save_shard

SHARD_BYTES = 10**9
SHOWN = 40
"""Names listed of each kind of mismatch."""


class MismatchError(ValueError):
    """The tensors of a checkpoint are not those that its format and configuration ask for."""


@dataclass
class Plan(TensorSource):
    """Steps with their results foreseen in `meta`.

    `unknown`: tensors that no row of a table knows.
    """

    steps: list[tuple[Step, Read]] = field(default_factory=list)
    meta: Named = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    _maker: dict[str, int] = field(default_factory=dict)

    def add(self, step: Step, source: TensorSource) -> None:
        """Foresees `step` on tensors of `source`."""
        try:
            made_tensors = step.run(source.meta.__getitem__)
        # torch refuses the shapes: for example one expert of a layer is absent
        except RuntimeError as error:
            self.broken.append(
                f"{', '.join(step.sources[:4])}{', ...' if len(step.sources) > 4 else ''} ({error})"
            )
            return
        self._maker |= dict.fromkeys(made_tensors, len(self.steps))
        self.steps.append((step, source.read))
        self.meta |= {
            tensor_name: tensor.to("meta") for tensor_name, tensor in made_tensors.items()
        }

    def add_new(self, tensors: Mapping[str, Tensor]) -> None:
        """Tensors that are at hand already."""
        for tensor_name, tensor in tensors.items():
            self._maker[tensor_name] = len(self.steps)
            self.steps.append((renaming(tensor_name, tensor_name), tensors.__getitem__))
            self.meta[tensor_name] = tensor.to("meta")

    def read(self, name: str) -> Tensor:
        """Makes one of the tensors, so that another plan can go on from this one."""
        making_step, step_read = self.steps[self._maker[name]]
        return making_step.run(step_read)[name]

    def join_tied(self, tied: Mapping[str, str], what: str) -> None:
        """Leaves out tensors that the configuration ties to another and the files hold all the
        same; a `MismatchError` where the two differ.
        """
        for tied_name, source_name in tied.items():
            if not {tied_name, source_name} <= self.meta.keys():
                continue
            if not torch.equal(self.read(tied_name), self.read(source_name)):
                raise MismatchError(
                    f"{what}: config.json says tie_word_embeddings, but {tied_name} differs from "
                    f"{source_name} in the files. Set tie_word_embeddings to false, if the model "
                    "was trained with a head of its own. Nothing was written"
                )
            del self.meta[tied_name]

    def check(self, expected: Mapping[str, Tensor], what: str) -> None:
        """A `MismatchError` with the lists, unless exactly the tensors of `expected` come out."""
        problems = {
            "missing": [tensor_name for tensor_name in expected if tensor_name not in self.meta],
            "unexpected": [
                *self.unknown,
                *(tensor_name for tensor_name in self.meta if tensor_name not in expected),
            ],
            "of another shape": [
                f"{tensor_name} {list(made_tensor.shape)}, expected "
                f"{list(expected[tensor_name].shape)}"
                for tensor_name, made_tensor in self.meta.items()
                if tensor_name in expected and made_tensor.shape != expected[tensor_name].shape
            ],
            "of whole numbers (quantised weights are not read)": [
                f"{tensor_name} {made_tensor.dtype}"
                for tensor_name, made_tensor in self.meta.items()
                if tensor_name in expected
                and expected[tensor_name].is_floating_point()
                and not made_tensor.is_floating_point()
            ],
            "that cannot be put together": self.broken,
        }
        problem_texts = [
            f"  {len(problem_names)} {problem_kind}: "
            f"{', '.join(problem_names[:SHOWN])}{', ...' if len(problem_names) > SHOWN else ''}"
            for problem_kind, problem_names in problems.items()
            if problem_names
        ]
        if problem_texts:
            raise MismatchError(
                f"{what}: the tensors are not those that the configuration asks for.\n"
                + "\n".join(problem_texts)
                + "\n"
                "Nothing was written. Is the checkpoint whole, and of this format?"
            )


def plan_import(plan: Plan, source: TensorSource, part: Part) -> None:
    """Adds the steps from a part of a foreign checkpoint to our names."""
    kept_names = [tensor_name for tensor_name in source.meta if not part.keymap.drops(tensor_name)]
    for reading_step in _in_order(part.layout.reading(kept_names), kept_names):
        if part.keymap.to_native(reading_step.target) is None:
            plan.unknown += reading_step.sources
        else:
            plan.add(_renamed(reading_step, part), source)


def plan_export(source: TensorSource, target: Foreign) -> Plan:
    """The steps from our names to files of a foreign format."""
    plan = Plan()
    native: dict[str, str] = {}
    for native_name in source.meta:
        foreign = target.keymap.to_foreign(native_name)
        if foreign is None:
            plan.unknown.append(native_name)
        else:
            native[foreign] = native_name
    for writing_step in _in_order(target.layout.writing(native), list(native)):
        plan.add(_reading_native(writing_step, native, target), source)
    return plan


def _in_order(steps: list[Step], names: list[str]) -> list[Step]:
    """As their first tensors lie in the files, so that each file is opened once."""
    name_positions = {tensor_name: name_position for name_position, tensor_name in enumerate(names)}
    return sorted(steps, key=lambda step: name_positions[step.sources[0]])


def _renamed(step: Step, part: Part) -> Step:
    def run(read: Read) -> Named:
        made_tensors: Named = {}
        for foreign, tensor in step.run(read).items():
            native_name = part.keymap.to_native(foreign)
            assert native_name is not None, (
                f"{foreign} comes out of a step whose first tensor has a row"
            )
            made_tensors[native_name] = (
                part.edit[native_name](tensor) if native_name in part.edit else tensor
            )
        return made_tensors

    return Step(step.sources, step.target, run)


def _reading_native(step: Step, native: Mapping[str, str], target: Foreign) -> Step:
    def run(read: Read) -> Named:
        def read_native(foreign: str) -> Tensor:
            native_name = native[foreign]
            return (
                target.edit[native_name](read(native_name))
                if native_name in target.edit
                else read(native_name)
            )

        return step.run(read_native)

    return Step(tuple(native[foreign_source] for foreign_source in step.sources), step.target, run)


def write_weights(plan: Plan, folder: Path, shard_bytes: int = SHARD_BYTES) -> list[str]:
    """Runs the plan; writes shards of at most `shard_bytes` (a larger tensor stands alone) and
    their index.

    Returns:
        Names of the tensors with values that are not finite.
    """
    not_finite: list[str] = []
    split = split_torch_state_dict_into_shards(plan.meta, max_shard_size=shard_bytes)
    shards = iter(split.filename_to_tensors.items())
    shard_file, shard_names = next(shards)
    waiting: Named = {}
    with tqdm(total=nbytes(plan.meta), unit="B", unit_scale=True, desc="converting") as progress:
        for plan_step, step_read in plan.steps:
            made_tensors = plan_step.run(step_read)
            progress.update(nbytes(made_tensors))
            not_finite += [
                tensor_name
                for tensor_name, tensor in made_tensors.items()
                if tensor.is_floating_point() and not torch.isfinite(tensor).all()
            ]
            waiting |= made_tensors
            del made_tensors
            while shard_file and waiting.keys() >= set(shard_names):
                save_shard(
                    {tensor_name: waiting.pop(tensor_name) for tensor_name in shard_names},
                    folder / shard_file,
                )
                shard_file, shard_names = next(shards, ("", []))
    assert not waiting and not shard_file, f"left over after the last shard: {sorted(waiting)}"
    if split.is_sharded:
        index_content = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index_content, indent=2) + "\n")
    return not_finite
