"""The network: configuration, connectors, splicing, router losses, and the model that composes them."""

from m3.model.configuration import ConnectorConfig, M3Config, NestingConfig
from m3.model.modeling import M3ForConditionalGeneration, M3Model, M3Output

__all__ = ["ConnectorConfig", "M3Config", "M3ForConditionalGeneration", "M3Model", "M3Output", "NestingConfig"]
