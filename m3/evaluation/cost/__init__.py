"""Cost of a prompt at a budget: measured latency, formulas, and estimates for named
accelerators.
"""
