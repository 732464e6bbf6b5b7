"""Parsers: a record becomes a conversation or a document. One function for each layout."""
