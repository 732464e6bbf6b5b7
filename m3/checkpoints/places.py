"""Path of a checkpoint: a folder, or the hub's cached copy of a repository."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from m3.files import check_model_name

WANTED = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model")
PICKLED = ("pytorch_model*.bin",)


def find(name: str, allow_pickle: bool = False) -> Path:
    """The folder `name`, or a snapshot of the hub repository of that id (weights only as
    safetensors, unless pickles are allowed).
    """
    local_folder = Path(name)
    if local_folder.is_dir():
        return local_folder
    check_model_name(name)
    try:
        return Path(
            snapshot_download(name, allow_patterns=[*WANTED, *(PICKLED if allow_pickle else ())])
        )
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError) as error:
        raise ValueError(
            f"{name!r} is neither a folder nor a repository that can be had ({error})"
        ) from error
