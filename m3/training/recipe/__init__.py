"""Recipes as typed data: one run, its sections, and several stages in a chain."""
