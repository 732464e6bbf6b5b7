"""Makes M3 known to transformers' Auto classes; `import m3` does this."""

from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from m3.model import M3Config, M3ForConditionalGeneration
from m3.processing import M3Processor

AutoConfig.register(M3Config.model_type, M3Config)
AutoModelForImageTextToText.register(M3Config, M3ForConditionalGeneration)
AutoProcessor.register(M3Config, M3Processor)

__all__ = ["M3Config", "M3ForConditionalGeneration", "M3Processor"]
