"""Conversion of a checkpoint folder from one format to another.

in: a folder; way: its format says what it is in our terms (configuration, processor, layout and key
map of its weights), streaming plans and checks every tensor, the target format says what to write;
out: a new folder, whole or not at all.
"""

from contextlib import ExitStack
from pathlib import Path

from m3.checkpoints.base import Native, Options, expected_tensors
from m3.checkpoints.formats import NATIVE, get_format, recognise
from m3.checkpoints.streaming import (
    SHARD_BYTES,
    MismatchError,
    Plan,
    plan_export,
    plan_import,
    write_weights,
)
from m3.checkpoints.weights import Weights
from m3.files import atomic_folder, refuse_existing


def convert(
    source: Path,
    dest: Path,
    form: str = "auto",
    to: str = NATIVE,
    options: Options | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Converts the folder `source` into the new folder `dest`.

    Args:
        form, to: rows of `FORMATS`; "auto" recognises `source` from its `config.json`.
        options: what `source` lacks.
        shard_bytes: largest file of weights, which also bounds the memory needed.

    Raises:
        MismatchError: missing or unexpected tensors.
        ValueError: whatever else is wrong with the folders, or that the target cannot hold.
    """
    refuse_existing(dest)
    native = get_format(recognise(source) if form == "auto" else form).read(
        source, options or Options()
    )
    write(native, dest, to, str(source), shard_bytes)


def write(native: Native, dest: Path, to: str, what: str, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes a checkpoint in our terms as a folder of the format `to`.

    `what` names its source in errors.
    """
    foreign_model = get_format(to).write(native)
    with ExitStack() as stack:
        export_plan = Plan()
        for native_part in native.parts:
            plan_import(export_plan, stack.enter_context(Weights(native_part.folder)), native_part)
        export_plan.add_new(native.new)
        export_plan.check(expected_tensors(native.config), what)
        plan = plan_export(export_plan, foreign_model)
        if plan.unknown or plan.broken:
            raise MismatchError(
                f"{what}: the format {to} has no place for {', '.join(plan.unknown + plan.broken)}"
            )
        with atomic_folder(dest) as folder:
            foreign_model.save(folder)
            write_weights(plan, folder, shard_bytes)
