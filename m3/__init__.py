"""M3: elastic visual tokens. One set of weights serves every number of visual tokens per image."""

import warnings

try:
    from m3.auto import M3Config, M3ForConditionalGeneration, M3Processor
except RuntimeError as error:  # transformers answers so when a torchvision built for another torch is installed
    if "torchvision" not in str(error):
        raise
    warnings.warn(f"{error}\nThe installed torchvision does not fit torch; `m3 doctor` says what to do.", stacklevel=2)

__all__ = ["M3Config", "M3ForConditionalGeneration", "M3Processor"]
__version__ = "0.1.0"
