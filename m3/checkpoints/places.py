"""Path of a checkpoint: a folder, or the hub's cached copy of a repository."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

WANTED = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model")


def find(name: str) -> Path:
    """The folder `name`, or a snapshot of the hub repository of that id (weights only as
    safetensors).
    """
    local_folder = Path(name)
    if local_folder.is_dir():
        return local_folder
    try:
        return Path(snapshot_download(name, allow_patterns=list(WANTED)))
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError) as error:
        raise ValueError(
            f"{name!r} is neither a folder nor a repository that can be had ({error})"
        ) from error
