"""The network: configuration, connectors, splicing, router losses, and the model that composes
them.
"""

from m3.model.backbone import M3Model
from m3.model.configuration import M3Config, NestingConfig
from m3.model.connectors import ConnectorConfig
from m3.model.image_inputs import IMAGE_INPUTS, ImageInputs
from m3.model.modeling import M3ForConditionalGeneration, M3Output

__all__ = [
    "IMAGE_INPUTS",
    "ConnectorConfig",
    "ImageInputs",
    "M3Config",
    "M3ForConditionalGeneration",
    "M3Model",
    "M3Output",
    "NestingConfig",
]
