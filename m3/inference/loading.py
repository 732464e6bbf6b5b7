"""Loading a checkpoint for inference: device, number format, quantisation, adapter.

In: a folder (or hub id) of a native M3 checkpoint and how to load it. Out: the model in evaluation
    mode and its processor.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import PreTrainedConfig

from m3.auto import M3Config, M3ForConditionalGeneration, M3Processor
from m3.checkpoints.formats.foreign_settings import check_settings, refusal_in_words
from m3.config import near_match
from m3.files import check_model_name
from m3.hardware import choose_device
from m3.inference.adapters import ADAPTER_CONFIG, add_adapter
from m3.inference.generation import warn_of_settings
from m3.inference.quantisation import Quantisation, get_quantisation, unquantised_modules
from m3.optional import require

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    path: str | Path,
    *,
    device: str | None = None,
    dtype: str = "auto",
    device_map: str | None = None,
    quantise: str | None = None,
    lora: str | Path | None = None,
    merge: bool = False,
    attention: str | None = None,
) -> tuple[M3ForConditionalGeneration, M3Processor]:
    """Load a model and its processor.

    A warning names the settings of generation_config.json other than token ids: none is used.

    Args:
        device: such as "cpu" or "cuda:1"; None for the choice of `choose_device`.
        dtype: float32, bfloat16, float16, or "auto": as saved, and for a quantised model the type
            that suits its kernels.
        device_map: instead of a device, accelerate's placement on several: "auto" spreads the
            layers over all of them.
        quantise: a row of `m3.inference.quantisation.QUANTISATIONS`.
        lora: the folder of an adapter; with `merge` it is added to the weights.
        attention: name of an attention implementation of transformers; None for its choice.

    Raises:
        ValueError: options that exclude each other; no native M3 checkpoint at `path`, or weights
            missing from it; a device that is not there; an adapter that does not fit.
        ModuleNotFoundError: a package that the options need is not installed; the text says what to
            install.
    """
    _check_options(device, dtype, device_map, quantise, lora, merge)
    config, target_device = read_config(path), choose_device(device)
    quantisation = None if quantise is None else get_quantisation(quantise)
    placement_map = (
        device_map if quantisation is None or device_map is not None else {"": target_device}
    )
    if placement_map is not None:
        require("accelerate")
    model = load_weights(
        path,
        config,
        _number_format(config, dtype, quantisation),
        quantisation=quantisation,
        device=target_device,
        device_map=placement_map,
        attention=attention,
    )
    if placement_map is None:
        model.to(target_device)  # pyright: ignore[reportArgumentType]  # transformers wraps `to` without its types
    warn_of_settings(model, path)
    if lora is not None:
        model = add_adapter(model, lora, merge)
    return model.eval(), load_processor(path)


def load_weights(
    path: str | Path,
    config: M3Config,
    number_format: torch.dtype,
    *,
    quantisation: Quantisation | None = None,
    device: torch.device | None = None,
    device_map: str | Mapping[str, torch.device] | None = None,
    attention: str | None = None,
    new_weights: str | None = None,
) -> M3ForConditionalGeneration:
    """A model of `config` with the weights at `path`, each of them and no others.

    Args:
        quantisation: how the decoder's weights are packed, for kernels of `device`.
        device_map: accelerate's placement.
        new_weights: beginning of the names of weights that the checkpoint does not have to hold:
            these are drawn.

    Raises:
        ValueError: weights that are damaged, missing, left over or of another shape.
    """
    packing = (
        None
        if quantisation is None
        else quantisation.config(
            unquantised_modules(config), number_format, device or choose_device()
        )
    )
    # the annotation of from_pretrained lacks the pair that output_loading_info makes it return
    try:
        model, load_report = M3ForConditionalGeneration.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
            path,
            config=config,
            dtype=number_format,
            device_map=device_map,
            quantization_config=packing,
            attn_implementation=attention,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `_check_weights` refuses them with a clearer message
        )
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path}: the weights are missing, damaged or cut short ({error}). Copy or download "
            "them again"
        ) from error
    _check_weights(path, load_report, new_weights)
    if quantisation is not None and quantisation.after_loading is not None:
        quantisation.after_loading(model)
    return model


def _check_weights(path: str | Path, report: Mapping[str, Any], new_weights: str | None) -> None:
    """Refuse missing, unexpected and mismatched weights, but for those that are to be new."""

    def is_new(weight_name: str) -> bool:
        return new_weights is not None and weight_name.startswith(new_weights)

    for key_kind, complaint in (
        ("missing_keys", "are missing from"),
        ("unexpected_keys", "have no place in the model of"),
    ):
        weight_names = sorted(name for name in report[key_kind] if not is_new(name))
        if weight_names:
            raise ValueError(
                f"{path}: {len(weight_names)} weights {complaint} the checkpoint, such as "
                f"{weight_names[0]}"
            )
    mismatched_keys = sorted(key for key in report["mismatched_keys"] if not is_new(key[0]))
    if mismatched_keys:
        weight_name, saved_shape, expected_shape = mismatched_keys[0]
        raise ValueError(
            f"{path}: {len(mismatched_keys)} weights are of another shape than config.json asks "
            f"for, such as {weight_name}: {list(saved_shape)}, expected {list(expected_shape)}"
        )


def load_processor(path: str | Path) -> M3Processor:
    """The processor of a native M3 checkpoint; a `ValueError` if `path` holds none."""
    try:
        return M3Processor.from_pretrained(path)
    except OSError as error:
        raise ValueError(
            f"{path}: the processor's files are missing or damaged: {error}"
        ) from error


def _check_options(
    device: str | None,
    dtype: str,
    device_map: str | None,
    quantise: str | None,
    lora: str | Path | None,
    merge: bool,
) -> None:
    if dtype != "auto" and dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}. {near_match(dtype, ['auto', *DTYPES])}")
    if device is not None and device_map is not None:
        raise ValueError(f"give device ({device}) or device_map ({device_map}), not both")
    if merge and lora is None:
        raise ValueError("merge was asked for without an adapter: name its folder with lora")
    if merge and quantise is not None:
        raise ValueError(
            f"an adapter is merged into weights of full precision, but quantise is {quantise}: "
            "leave one of them out"
        )


def _number_format(config: M3Config, dtype: str, quantisation: Quantisation | None) -> torch.dtype:
    if dtype != "auto":
        return DTYPES[dtype]
    if quantisation is not None and quantisation.dtype is not None:
        return quantisation.dtype
    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32


def read_config(path: str | Path) -> M3Config:
    """Read the configuration of a native M3 checkpoint; a `ValueError` if `path` holds none."""
    folder = Path(path)
    check_model_name(path)
    if folder.is_dir() and not (folder / "config.json").is_file():
        is_adapter = (folder / ADAPTER_CONFIG).is_file()
        folder_contents = (
            "a LoRA adapter: load the model it was trained on, with lora=this folder"
            if is_adapter
            else "no config.json"
        )
        final = folder / "checkpoints" / "final"
        hint = f". Did you mean {final}?" if final.is_dir() else ""
        raise ValueError(f"{path}: not an M3 checkpoint, it holds {folder_contents}{hint}")
    if folder.is_dir():
        check_settings(folder)
    try:
        config_dict, _ = PreTrainedConfig.get_config_dict(path)
    except OSError as error:
        if folder.exists():
            raise ValueError(f"{path}: config.json cannot be read: {error}") from error
        raise ValueError(
            f"{path}: no such folder (looked from {Path.cwd()}), and no model on the hub either: "
            f"{error}"
        ) from error
    if config_dict.get("model_type") != M3Config.model_type:
        raise ValueError(
            f"{path}: a model of type {config_dict.get('model_type')!r}, expected "
            f"{M3Config.model_type!r}. `m3 convert` turns the formats it knows into M3's"
        )
    try:
        return M3Config.from_pretrained(path)
    except StrictDataclassError as error:
        reason = refusal_in_words(str(error))
        raise ValueError(f"{path}: config.json is not a configuration of M3: {reason}") from error
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from error
