"""Layouts: how the names in a file lead to the names of a model's modules, and back.

transformers keeps, for each of its models, the rules by which hub names become module names and by which separate
experts are stacked into one tensor (`transformers.conversion_mapping`). `HubLayout` asks those rules, without weights,
for a list of steps: each says which tensors of the one side it needs and makes those of the other from them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    apply_converters,
    apply_renamings,
    dot_natural_key,
    rename_source_key,
)

Read = Callable[[str], Tensor]
Named = dict[str, Tensor]


@dataclass(frozen=True)
class Step:
    """`run` reads `sources` by name and returns named tensors; it runs on the meta device as it does on real ones.

    `target` is the name of the first tensor that comes out.
    """

    sources: tuple[str, ...]
    target: str
    run: Callable[[Read], Named]


class Layout(ABC):
    """Both ways between names in files and names of modules."""

    @abstractmethod
    def reading(self, names: Iterable[str]) -> list[Step]:
        """Steps from file names to module names. A name that no rule knows keeps itself."""

    @abstractmethod
    def writing(self, names: Iterable[str]) -> list[Step]:
        """Steps from module names to file names."""


class ModuleLayout(Layout):
    """Files that hold the names of the modules."""

    def reading(self, names: Iterable[str]) -> list[Step]:
        return [_renaming(name, name) for name in names]

    def writing(self, names: Iterable[str]) -> list[Step]:
        return self.reading(names)


class HubLayout(Layout):
    """Files as transformers reads and writes them for `model` (on the meta device; only its names are used)."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._modules = model.state_dict()
        self._transforms = get_model_conversion_mapping(model, add_legacy=False)

    def reading(self, names: Iterable[str]) -> list[Step]:
        """As transformers' `convert_and_load_state_dict_in_model` plans it."""
        renamings, converters = _by_kind(self._transforms)
        templates = {pattern: converter for converter in converters for pattern in converter.source_patterns}
        prefix = self._model.base_model_prefix
        steps: list[Step] = []
        groups: dict[str, list[tuple[str, str]]] = {}
        for name in sorted(names, key=dot_natural_key):
            target, pattern = rename_source_key(name, renamings, converters, prefix, self._modules)
            if target not in self._modules and name in self._modules:  # the file holds module names already
                target, pattern = name, None
            if pattern is None:
                steps.append(_renaming(name, target))
            else:
                groups.setdefault(target, []).append((pattern, name))
        return steps + [self._converting(templates, target, group, []) for target, group in groups.items()]

    def writing(self, names: Iterable[str]) -> list[Step]:
        """As transformers' `revert_weight_conversion` plans it, prefixes of the hub included."""
        renamings, converters = _by_kind([transform.reverse_transform() for transform in self._transforms[::-1]])
        templates = {pattern: converter for converter in converters for pattern in converter.source_patterns}
        steps: list[Step] = []
        groups: dict[str, list[tuple[str, str]]] = {}
        for name in sorted(names, key=dot_natural_key):
            target, pattern = apply_converters(name, converters)
            if pattern is None:
                steps.append(_renaming(name, apply_renamings(name, renamings)))
            else:
                groups.setdefault(target, []).append((pattern, name))
        return steps + [self._converting(templates, target, group, renamings) for target, group in groups.items()]

    def _converting(
        self,
        templates: dict[str, WeightConverter],
        target: str,
        group: list[tuple[str, str]],
        renamings: list[WeightRenaming],
    ) -> Step:
        """A converter's operations on one group of tensors, for example all experts of a layer."""

        def run(read: Read) -> Named:
            converter = deepcopy(templates[group[0][0]])
            for pattern, name in group:
                converter.add_tensor(target, name, pattern, read(name))  # pyright: ignore[reportArgumentType]  # or a Future
            made = converter.convert(target, model=self._model, config=self._model.config)
            return {
                apply_renamings(name, renamings): tensor[0] if isinstance(tensor, list) else tensor
                for name, tensor in made.items()
            }

        return Step(tuple(name for _, name in group), target, run)


def _renaming(source: str, target: str) -> Step:
    return Step((source,), target, lambda read: {target: read(source)})


def _by_kind(transforms: Iterable[object]) -> tuple[list[WeightRenaming], list[WeightConverter]]:
    transforms = list(transforms)
    return (
        [one for one in transforms if isinstance(one, WeightRenaming)],
        [one for one in transforms if isinstance(one, WeightConverter)],
    )
