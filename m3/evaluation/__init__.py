"""A model in, accuracy against cost out: the lmms-eval plug-in, the sweep over scales and its
report.
"""
