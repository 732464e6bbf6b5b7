"""Checkpoints in and out: foreign formats to native M3 folders and back, streamed tensor by
tensor.
"""
