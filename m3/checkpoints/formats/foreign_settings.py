"""Values of a foreign `config.json`, checked as a recipe's are: one sentence that names file and
key.

in: a folder's `config.json`; out: nothing, or a `ValueError`. What we read ourselves is decoded by
m3/config.py against a table; what transformers' own configurations refuse is said again in the
same words.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.errors import StrictDataclassError
from transformers.activations import ACT2FN

from m3.checkpoints.base import read_json
from m3.checkpoints.new_embeddings import NEW_TOKENS
from m3.config import decode, near_match
from m3.model import M3Config
from m3.nesting import SCALE_OPTION

NumberFormat = Literal["float32", "bfloat16", "float16", "float64", "auto"]
KINDS: Mapping[str, Any] = {
    SCALE_OPTION: list[int | str] | None,
    NEW_TOKENS: list[int] | None,
    "torch_dtype": NumberFormat | None,
    "dtype": NumberFormat | None,
    "image_size": int | tuple[int, int] | None,
    "patch_size": int | tuple[int, int] | None,
    "rope_scaling": Mapping[str, Any] | None,
    "rope_parameters": Mapping[str, Any] | None,
}
"""Kinds of values that transformers does not check, or checks in other words."""
ACTIVATIONS = ("hidden_act", "hidden_activation", "projector_hidden_act")
"""Names of functions; transformers looks them up when it builds a layer."""
IN_WORDS: Mapping[str, str] = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "dict": "a mapping",
    "NoneType": "null",
}
"""Python's types as JSON's reader knows them."""
LEFT_OUT = ("PreTrainedConfig",)
"""What a file cannot hold."""
VALUES = (r"with value (.*?) doesn't match", r"\(value: (.*?)\)(?:;|$)", r", got (.+)$")
"""Where transformers' sentences quote the value, the surest first."""
VILA_PARTS = ("llm", "vision_tower", "mm_projector")
"""Folders in a checkpoint of VILA."""
SECTIONS = ("text_config", "vision_config")


def check_settings(folder: Path) -> None:
    """A `ValueError` for a value in `config.json` that is of another kind than its key takes, and
    for a folder of VILA, which looks like LLaVA's.
    """
    file = folder / "config.json"
    config = read_json(file)
    if "llm_cfg" in config or all((folder / name).is_dir() for name in VILA_PARTS):
        raise ValueError(
            f"{folder} is a VILA checkpoint (parts in {', '.join(VILA_PARTS)}), which no format "
            f"reads. `m3 assemble DEST --vision {folder / 'vision_tower'} --decoder "
            f"{folder / 'llm'}` joins its encoder and its decoder by a new connector, to be trained"
        )
    _check_section(config, str(file), "")
    for section_name in SECTIONS:
        if isinstance(config.get(section_name), Mapping):
            _check_section(config[section_name], str(file), f"{section_name}.")


def _check_section(section: Mapping[str, Any], file: str, above: str) -> None:
    for key, kind in KINDS.items():
        if key in section:
            decode(section[key], kind, f"{file}: {above}{key}")
    for key in ACTIVATIONS:
        name = section.get(key)
        if isinstance(name, str) and name not in ACT2FN:
            raise ValueError(
                f"{file}: {above}{key}: no activation {name!r}. {near_match(name, ACT2FN)}"
            )


@contextmanager
def plain_refusals(folder: Path) -> Iterator[None]:
    """Inside, what transformers refuses in `folder/config.json` becomes one sentence."""
    try:
        yield
    except StrictDataclassError as error:
        raise ValueError(f"{folder / 'config.json'}: {refusal_in_words(str(error))}") from error


def refusal_in_words(text: str) -> str:
    """`key: expected this, got that` of transformers' several lines.

    >>> refusal_in_words("...for field 'a':\\n    TypeError: Field 'a' expected int, got str (value: 'x')")
    "a: expected a whole number, got 'x'"
    """
    field_name = re.search(r"for field '([^']+)'", text)
    reason = text.split("\n", 1)[-1].strip()
    reason = re.sub(r"^\w+Error: ", "", reason)
    if field_name is None:
        return reason
    expected = [
        IN_WORDS.get(kind, kind)
        for kind in re.findall(r"expected (.+?), got", reason)
        if kind not in LEFT_OUT
    ]
    values = [match for place in VALUES if (match := re.search(place, reason)) is not None]
    if not expected or not values:
        return f"{field_name[1]}: {reason}"
    got, kinds = values[0][1], " or ".join(dict.fromkeys(expected))
    return f"{field_name[1]}: expected {kinds}, got {'null' if got == 'None' else got}"


def check_feature_layer(config: M3Config, folder: Path) -> None:
    """A `ValueError` for a hidden state that the encoder does not have."""
    layer, layers = (
        config.vision_feature_layer,
        config.vision_config.to_dict().get("num_hidden_layers"),
    )
    # layer 0 is the embedding, before any layer
    if layer is not None and layers is not None and not -layers - 1 <= layer <= layers:
        raise ValueError(
            f"{folder / 'config.json'}: the features are taken from hidden state {layer}, but the "
            f"vision encoder has {layers} layers: expected {-layers - 1} to {layers}"
        )
