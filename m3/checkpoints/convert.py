"""Conversion of a checkpoint folder from one format to another.

in: a folder; way: its format says what it is in our terms (configuration, processor, layout and key
map of its weights), streaming plans and checks every tensor, the target format says what to write;
out: a new folder, whole or not at all.
"""

import logging
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from m3.checkpoints.base import Native, Options, empty_model, expected_tensors
from m3.checkpoints.formats import NATIVE, get_format, recognise
from m3.checkpoints.formats.foreign_settings import (
    check_feature_layer,
    check_settings,
    plain_refusals,
)
from m3.checkpoints.pickled import as_safetensors
from m3.checkpoints.streaming import (
    SHARD_BYTES,
    SHOWN,
    MismatchError,
    Plan,
    plan_export,
    plan_import,
    write_weights,
)
from m3.checkpoints.weights import Weights
from m3.files import atomic_folder, refuse_existing

logger = logging.getLogger(__name__)


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
    options = options or Options()
    check_settings(source)
    format_name = recognise(source) if form == "auto" else form
    with ExitStack() as stack:
        if options.allow_pickle:
            source = stack.enter_context(as_safetensors(source, dest.parent))
            if options.vision_tower is not None:
                tower = stack.enter_context(as_safetensors(options.vision_tower, dest.parent))
                options = replace(options, vision_tower=tower)
        with plain_refusals(source):
            native = get_format(format_name).read(source, options)
        check_feature_layer(native.config, source)
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
        export_plan.join_tied(empty_model(native.config).all_tied_weights_keys, what)
        export_plan.check(expected_tensors(native.config), what)
        plan = plan_export(export_plan, foreign_model)
        if plan.unknown or plan.broken:
            raise MismatchError(
                f"{what}: the format {to} has no place for {', '.join(plan.unknown + plan.broken)}"
            )
        with atomic_folder(dest) as folder:
            foreign_model.save(folder)
            not_finite = write_weights(plan, folder, shard_bytes)
    if not_finite:
        logger.warning(
            "%s: %d tensors hold values that are not finite (%s), as the source does: answers will "
            "be nonsense, and training will stop",
            what,
            len(not_finite),
            ", ".join(not_finite[:SHOWN]),
        )
