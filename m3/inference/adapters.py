"""LoRA adapters: a folder that peft wrote (`adapter_config.json`, `adapter_model.safetensors`)
onto a loaded model.
"""

from pathlib import Path

from m3.model import M3ForConditionalGeneration
from m3.optional import require

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def add_adapter(
    model: M3ForConditionalGeneration, folder: str | Path, merge: bool
) -> M3ForConditionalGeneration:
    """The model with the adapter at work in its layers; with `merge`, added into the weights and
    gone.

    Raises:
        ValueError: no adapter there, or one that does not fit: a layer that the model lacks,
            another shape, a weight that is missing or left over. (peft would warn and go on without
            it.)
        ModuleNotFoundError: peft is not installed.
    """
    require("peft")
    from peft import PeftConfig, PeftModel

    folder = Path(folder)
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder}: no LoRA adapter there: {' and '.join(missing)} missing (peft's "
            "save_pretrained writes both)"
        )
    config = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = True
    try:
        adapted = PeftModel(model, config)
        loaded = adapted.load_adapter(str(folder), "default", torch_device=str(model.device))
    except (RuntimeError, ValueError) as error:  # a wrong shape; a layer that is not there
        raise ValueError(f"{folder}: the adapter does not fit this model: {error}") from error
    wrong = [*loaded.missing_keys, *loaded.unexpected_keys]
    if wrong:
        raise ValueError(
            f"{folder}: the adapter does not fit this model: {len(loaded.missing_keys)} weights "
            "missing, "
            f"{len(loaded.unexpected_keys)} left over, such as {wrong[0]}. It was trained on "
            "another model"
        )
    if merge:
        return adapted.merge_and_unload()  # pyright: ignore[reportReturnType, reportCallIssue]  # the model given
    return adapted.get_base_model()  # pyright: ignore[reportReturnType]  # the same, with the adapter in its layers
