"""Layouts: how the names in a file lead to the names of a model's modules, and back.

transformers keeps, for each of its models, the rules by which hub names become module names and by
which separate experts are stacked into one tensor (`transformers.conversion_mapping`). `HubLayout`
asks those rules, without weights, for a list of steps: each says which tensors of the one side it
needs and makes those of the other from them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    apply_converters,
    apply_renamings,
    dot_natural_key,
    rename_source_key,
)

Read = Callable[[str], Tensor]
Named = dict[str, Tensor]
EXPERTS_AT_ONCE = 8


@dataclass(frozen=True)
class Step:
    """`run` reads `sources` by name and returns named tensors; it runs on the meta device as it
    does on real ones.

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
        return [renaming(name, name) for name in names]

    def writing(self, names: Iterable[str]) -> list[Step]:
        return self.reading(names)


class HubLayout(Layout):
    """Files as transformers reads and writes them for `model` (on the meta device; only its
    names are used).
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._modules = model.state_dict()
        self._transforms = get_model_conversion_mapping(model, add_legacy=False)

    def reading(self, names: Iterable[str]) -> list[Step]:
        """As transformers' `convert_and_load_state_dict_in_model` plans it."""
        renamings, converters = _by_kind(self._transforms)
        templates = {
            pattern: converter for converter in converters for pattern in converter.source_patterns
        }
        prefix = self._model.base_model_prefix
        reading_steps: list[Step] = []
        target_groups: dict[str, list[tuple[str, str]]] = {}
        for name in sorted(names, key=dot_natural_key):
            target, pattern = rename_source_key(name, renamings, converters, prefix, self._modules)
            # the file holds module names already
            if target not in self._modules and name in self._modules:
                target, pattern = name, None
            if pattern is None:
                reading_steps.append(renaming(name, target))
            else:
                target_groups.setdefault(target, []).append((pattern, name))
        return reading_steps + [
            self._converting(templates, target, group, [])
            for target, group in target_groups.items()
        ]

    def writing(self, names: Iterable[str]) -> list[Step]:
        """As transformers' `revert_weight_conversion` plans it, prefixes of the hub included."""
        renamings, converters = _by_kind(
            [transform.reverse_transform() for transform in self._transforms[::-1]]
        )
        templates = {
            pattern: converter for converter in converters for pattern in converter.source_patterns
        }
        writing_steps: list[Step] = []
        target_groups: dict[str, list[tuple[str, str]]] = {}
        for name in sorted(names, key=dot_natural_key):
            target, pattern = apply_converters(name, converters)
            if pattern is None:
                writing_steps.append(renaming(name, apply_renamings(name, renamings)))
            else:
                target_groups.setdefault(target, []).append((pattern, name))
        return writing_steps + [
            self._converting(templates, target, group, renamings)
            for target, group in target_groups.items()
        ]

    def _converting(
        self,
        templates: dict[str, WeightConverter],
        target: str,
        group: list[tuple[str, str]],
        renamings: list[WeightRenaming],
    ) -> Step:
        """A converter's operations on one group of (pattern, name), for example all experts of a
        layer.
        """
        template = templates[group[0][0]]
        names: dict[str, list[str]] = {}
        for pattern, name in group:
            names.setdefault(pattern, []).append(name)
        convert = self._convert_by_experts if _stacks_experts(template) else self._convert

        def run(read: Read) -> Named:
            made_tensors = convert(template, target, names, read)
            return {
                apply_renamings(tensor_name, renamings): tensor
                for tensor_name, tensor in made_tensors.items()
            }

        return Step(tuple(name for _, name in group), target, run)

    def _convert(
        self, template: WeightConverter, target: str, names: dict[str, list[str]], read: Read
    ) -> Named:
        converter = deepcopy(template)
        for pattern, some in names.items():
            for name in some:
                converter.add_tensor(target, name, pattern, read(name))  # pyright: ignore[reportArgumentType]  # or a Future
        made_tensors = converter.convert(target, model=self._model, config=self._model.config)
        return {
            name: tensor[0] if isinstance(tensor, list) else tensor
            for name, tensor in made_tensors.items()
        }

    def _convert_by_experts(
        self, template: WeightConverter, target: str, names: dict[str, list[str]], read: Read
    ) -> Named:
        """The same, some experts at a time: memory holds the result and few experts beside it,
        not all of them thrice.
        """
        expert_counts = {pattern: len(some) for pattern, some in names.items()}
        experts = max(expert_counts.values())
        if (
            set(expert_counts) != set(template.source_patterns)
            or min(expert_counts.values()) != experts
        ):
            raise RuntimeError(f"the experts have different numbers of tensors: {expert_counts}")
        out: Named = {}
        for first_expert in range(0, experts, EXPERTS_AT_ONCE):
            few_names = {
                pattern: some[first_expert : first_expert + EXPERTS_AT_ONCE]
                for pattern, some in names.items()
            }
            for name, piece in self._convert(template, target, few_names, read).items():
                if name not in out:
                    out[name] = piece.new_empty(experts, *piece.shape[1:])
                out[name][first_expert : first_expert + len(piece)] = piece
        return out


def _stacks_experts(converter: WeightConverter) -> bool:
    """Tell whether expert i of the result comes from expert i alone: stacked along the first axis,
    joined along others.
    """
    first_operation, *other_operations = converter.operations
    return (
        isinstance(first_operation, MergeModulelist)
        and first_operation.dim == 0
        and all(
            isinstance(operation, Concatenate) and operation.dim > 0
            for operation in other_operations
        )
    )


def renaming(source: str, target: str) -> Step:
    return Step((source,), target, lambda read: {target: read(source)})


def _by_kind(transforms: Iterable[object]) -> tuple[list[WeightRenaming], list[WeightConverter]]:
    transforms = list(transforms)
    return (
        [name_change for name_change in transforms if isinstance(name_change, WeightRenaming)],
        [name_change for name_change in transforms if isinstance(name_change, WeightConverter)],
    )
