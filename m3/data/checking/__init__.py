"""Checks of all data that a recipe names, and samples on a page, before a run."""
