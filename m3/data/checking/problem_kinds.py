"""Kinds of problems that samples may have, by name: a table alone, so that a help text can say it
without what looks for them.
"""

KINDS: dict[str, str] = {
    "source": "the source cannot be opened",
    "record": "the record cannot be read",
    "marks": "images and the places for them differ in number",
    "missing": "an image file is missing",
    "image": "an image cannot be decoded",
    "too_long": "does not fit a row",
    "unsayable": "an answer holds a token that this run cannot teach the model to say",
    "endless": "answers are not taught to end where generation stops",
    "duplicate_id": "an id stands twice in its source",
    "duplicate": "the same sample stands twice",
}
"""Problems of data."""
