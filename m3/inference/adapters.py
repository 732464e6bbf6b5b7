"""LoRA adapters in peft's format, loaded onto a model."""

from pathlib import Path

from m3.model import M3ForConditionalGeneration
from m3.optional import require

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def add_adapter(
    model: M3ForConditionalGeneration, folder: str | Path, merge: bool
) -> M3ForConditionalGeneration:
    """Load an adapter into the model's layers; with `merge`, add it to the weights.

    Raises:
        ValueError: no adapter there, or one that does not fit: a layer that the model lacks,
            another shape, a missing or unexpected weight (for which peft only warns).
        ModuleNotFoundError: peft is not installed.
    """
    require("peft")
    from peft import PeftConfig, PeftModel

    folder = Path(folder)
    missing_files = [
        name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if not (folder / name).is_file()
    ]
    if missing_files:
        raise ValueError(
            f"{folder}: no LoRA adapter there: {' and '.join(missing_files)} missing (peft's "
            "save_pretrained writes both)"
        )
    adapter_config = PeftConfig.from_pretrained(str(folder))
    adapter_config.inference_mode = True
    try:
        adapted = PeftModel(model, adapter_config)
        report = adapted.load_adapter(str(folder), "default", torch_device=str(model.device))
    except (RuntimeError, ValueError) as error:  # a wrong shape; a layer that is not there
        raise ValueError(f"{folder}: the adapter does not fit this model: {error}") from error
    wrong_keys = [*report.missing_keys, *report.unexpected_keys]
    if wrong_keys:
        raise ValueError(
            f"{folder}: the adapter does not fit this model: {len(report.missing_keys)} weights "
            f"missing, {len(report.unexpected_keys)} left over, such as {wrong_keys[0]}. It was "
            "trained on another model"
        )
    if merge:
        return adapted.merge_and_unload()  # pyright: ignore[reportReturnType, reportCallIssue]
    return adapted.get_base_model()  # pyright: ignore[reportReturnType]
