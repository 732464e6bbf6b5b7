"""Using a checkpoint: loading it, talking with it about images and videos, seeing what a scale
costs.
"""

from m3.hardware import choose_device
from m3.inference.ask import ask
from m3.inference.conversation import Answer, Conversation, Generation
from m3.inference.loading import load

__all__ = ["Answer", "Conversation", "Generation", "ask", "choose_device", "load"]
