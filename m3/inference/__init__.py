"""Inference from a checkpoint: loading, conversations about images and videos, cost of a scale."""

from m3.hardware import choose_device
from m3.inference.ask import ask
from m3.inference.conversation import Answer, Conversation, Generation
from m3.inference.loading import load

__all__ = ["Answer", "Conversation", "Generation", "ask", "choose_device", "load"]
