"""Using a checkpoint: loading it, talking with it about images and videos, seeing what a scale costs."""

from m3.inference.device import choose_device
from m3.inference.loading import load

__all__ = ["choose_device", "load"]
