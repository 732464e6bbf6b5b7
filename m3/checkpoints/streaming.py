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
            made = step.run(source.meta.__getitem__)
        # torch refuses the shapes: for example one expert of a layer is absent
        except RuntimeError as error:
            self.broken.append(
                f"{', '.join(step.sources[:4])}{', ...' if len(step.sources) > 4 else ''} ({error})"
            )
            return
        self._maker |= dict.fromkeys(made, len(self.steps))
        self.steps.append((step, source.read))
        self.meta |= {name: tensor.to("meta") for name, tensor in made.items()}

    def add_new(self, tensors: Mapping[str, Tensor]) -> None:
        """Tensors that are at hand already."""
        for name, tensor in tensors.items():
            self._maker[name] = len(self.steps)
            self.steps.append((renaming(name, name), tensors.__getitem__))
            self.meta[name] = tensor.to("meta")

    def read(self, name: str) -> Tensor:
        """Makes one of the tensors, so that another plan can go on from this one."""
        step, read = self.steps[self._maker[name]]
        return step.run(read)[name]

    def check(self, expected: Mapping[str, Tensor], what: str) -> None:
        """A `MismatchError` with the lists, unless exactly the tensors of `expected` come out."""
        problems = {
            "missing": [name for name in expected if name not in self.meta],
            "unexpected": [*self.unknown, *(name for name in self.meta if name not in expected)],
            "of another shape": [
                f"{name} {list(made.shape)}, expected {list(expected[name].shape)}"
                for name, made in self.meta.items()
                if name in expected and made.shape != expected[name].shape
            ],
            "of whole numbers (quantised weights are not read)": [
                f"{name} {made.dtype}"
                for name, made in self.meta.items()
                if name in expected
                and expected[name].is_floating_point()
                and not made.is_floating_point()
            ],
            "that cannot be put together": self.broken,
        }
        found = [
            f"  {len(names)} {kind}: "
            f"{', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"
            for kind, names in problems.items()
            if names
        ]
        if found:
            raise MismatchError(
                f"{what}: the tensors are not those that the configuration asks for.\n"
                + "\n".join(found)
                + "\n"
                "Nothing was written. Is the checkpoint whole, and of this format?"
            )


def plan_import(plan: Plan, source: TensorSource, part: Part) -> None:
    """Adds the steps from a part of a foreign checkpoint to our names."""
    kept = [name for name in source.meta if not part.keymap.drops(name)]
    for step in _in_order(part.layout.reading(kept), kept):
        if part.keymap.to_native(step.target) is None:
            plan.unknown += step.sources
        else:
            plan.add(_renamed(step, part), source)


def plan_export(source: TensorSource, target: Foreign) -> Plan:
    """The steps from our names to files of a foreign format."""
    plan = Plan()
    native: dict[str, str] = {}
    for name in source.meta:
        foreign = target.keymap.to_foreign(name)
        if foreign is None:
            plan.unknown.append(name)
        else:
            native[foreign] = name
    for step in _in_order(target.layout.writing(native), list(native)):
        plan.add(_reading_native(step, native, target), source)
    return plan


def _in_order(steps: list[Step], names: list[str]) -> list[Step]:
    """As their first tensors lie in the files, so that each file is opened once."""
    place = {name: number for number, name in enumerate(names)}
    return sorted(steps, key=lambda step: place[step.sources[0]])


def _renamed(step: Step, part: Part) -> Step:
    def run(read: Read) -> Named:
        made: Named = {}
        for foreign, tensor in step.run(read).items():
            name = part.keymap.to_native(foreign)
            assert name is not None, f"{foreign} comes out of a step whose first tensor has a row"
            made[name] = part.edit[name](tensor) if name in part.edit else tensor
        return made

    return Step(step.sources, step.target, run)


def _reading_native(step: Step, native: Mapping[str, str], target: Foreign) -> Step:
    def run(read: Read) -> Named:
        def read_native(foreign: str) -> Tensor:
            name = native[foreign]
            return target.edit[name](read(name)) if name in target.edit else read(name)

        return step.run(read_native)

    return Step(tuple(native[source] for source in step.sources), step.target, run)


def write_weights(plan: Plan, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Runs the plan; writes shards of at most `shard_bytes` (a larger tensor stands alone) and
    their index.
    """
    split = split_torch_state_dict_into_shards(plan.meta, max_shard_size=shard_bytes)
    shards = iter(split.filename_to_tensors.items())
    file, names = next(shards)
    waiting: Named = {}
    with tqdm(total=nbytes(plan.meta), unit="B", unit_scale=True, desc="converting") as progress:
        for step, read in plan.steps:
            made = step.run(read)
            progress.update(nbytes(made))
            waiting |= made
            del made
            while file and waiting.keys() >= set(names):
                save_shard({name: waiting.pop(name) for name in names}, folder / file)
                file, names = next(shards, ("", []))
    assert not waiting and not file, f"left over after the last shard: {sorted(waiting)}"
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
