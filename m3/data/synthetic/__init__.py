"""The embedded suite: six families of drawn pictures with questions, for training and for the
built-in benchmark.
"""
