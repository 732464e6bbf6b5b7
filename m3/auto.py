"""Makes M3 known to transformers' Auto classes: `import m3.auto`, and whatever loads or writes a model
of M3.
"""

from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

from m3.model import M3Config, M3ForConditionalGeneration
from m3.processing import M3Processor
from m3.processing.aria_tiles import AriaTileProcessor

AutoConfig.register(M3Config.model_type, M3Config)
AutoModelForImageTextToText.register(M3Config, M3ForConditionalGeneration)
AutoProcessor.register(M3Config, M3Processor)
# found by its name, which a saved processor holds; models with other encoders name theirs
AutoImageProcessor.register(M3Config, image_processor_classes={"pil": AriaTileProcessor})

__all__ = ["M3Config", "M3ForConditionalGeneration", "M3Processor"]
