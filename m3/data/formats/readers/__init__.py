"""Readers: records of JSON files, tables, tars and text files, by number."""
