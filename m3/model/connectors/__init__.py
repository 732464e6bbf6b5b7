"""Connectors: patch features of the vision encoder -> embeddings of the decoder.

A row of `CONNECTORS` is a class (`base.py`) that owns all that is true of a connector: its
configuration, the grid of its tokens, its operations, its initialisation. docs/add_a_connector.md adds
one.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from m3.model.connectors.aria import AriaProjector
from m3.model.connectors.base import Connector, ConnectorConfig, ConnectorSizes, OwnParameters
from m3.model.connectors.mlp import Linear, Mlp
from m3.model.connectors.pixel_shuffle import PixelShuffle
from m3.model.connectors.resampler import Resampler

CONNECTORS: dict[str, type[Connector]] = {
    "mlp2x_gelu": Mlp,
    "linear": Linear,
    "resampler": Resampler,
    "aria_projector": AriaProjector,
    "pixel_shuffle": PixelShuffle,
}
UNUSED_DEFAULTS: dict[str, Any] = {"num_queries": 64, "num_heads": 8, "patch_queries": []}
"""Settings that a config.json may state of any connector; where a connector has no such setting,
its default means nothing.
"""


def connector_config(settings: Mapping[str, Any]) -> ConnectorConfig:
    """The configuration of the connector that `settings["kind"]` names, by default `mlp2x_gelu`.

    Raises:
        ValueError: an unknown connector, settings that it does not have, lacks or cannot take.
    """
    kind = settings.get("kind", "mlp2x_gelu")
    if kind not in list(CONNECTORS):  # a list in a file is no key
        raise ValueError(f"unknown connector kind {kind!r}; known: {', '.join(CONNECTORS)}")
    config_class = CONNECTORS[kind].config_class
    known = [field.name for field in fields(config_class)]
    unused = [
        name
        for name, default in UNUSED_DEFAULTS.items()
        if name not in known and name in settings and settings[name] == default
    ]
    given = {name: value for name, value in settings.items() if name not in unused}
    unknown, missing = sorted(given.keys() - set(known)), required_settings(kind) - given.keys()
    if unknown or missing:
        fault = f"has no {', '.join(unknown)}" if unknown else f"needs {', '.join(sorted(missing))}"
        raise ValueError(f"the connector {kind} {fault}; its settings are {', '.join(known)}")
    return config_class(**given | {"kind": kind})


def required_settings(kind: str) -> set[str]:
    """Names of the settings without a default."""
    own = fields(CONNECTORS[kind].config_class)
    return {field.name for field in own if field.default is MISSING} - {"kind"}


__all__ = [
    "CONNECTORS",
    "Connector",
    "ConnectorConfig",
    "ConnectorSizes",
    "OwnParameters",
    "connector_config",
    "required_settings",
]
