"""JSON schemas closed: an object has the properties that are named and no others, where the schema
leaves that open.

In: a schema as a client wrote it. Out: one that allows less, so what follows it follows the first too. Apart
from the grammar because it knows schemas alone. Many models would add properties until
their answer is cut; xgrammar and OpenAI's strict mode close objects as well.
"""

from collections.abc import Mapping

LISTS = ("anyOf", "oneOf", "prefixItems")
"""Keywords that hold a list of schemas."""
MAPPINGS = ("properties", "$defs", "definitions")
"""Keywords that hold schemas by name."""
OPENERS = frozenset(
    (
        "additionalProperties",
        "unevaluatedProperties",
        "patternProperties",
        "propertyNames",
        "minProperties",
        "$ref",
        "anyOf",
        "oneOf",
    )
)
"""Beside one of them an object's other properties are said, or mean something."""


def closed_schema(schema: Mapping[str, object]) -> Mapping[str, object]:
    """The schema with its objects closed; as it is where `allOf` puts objects together.

    Raises:
        ValueError: one that is nested deeper than Python goes.
    """
    try:
        return schema if _has_all_of(schema) else _closed(schema)
    except RecursionError as error:
        raise ValueError("the schema is nested too deeply") from error


def _has_all_of(node: object) -> bool:
    if isinstance(node, Mapping):
        return "allOf" in node or any(map(_has_all_of, node.values()))
    return isinstance(node, list) and any(map(_has_all_of, node))


def _closed(schema: Mapping[str, object]) -> Mapping[str, object]:
    closed = dict(schema)
    for keyword in MAPPINGS:
        named = schema.get(keyword)
        if isinstance(named, Mapping):
            closed[keyword] = {name: _closed_value(value) for name, value in named.items()}
    for keyword in LISTS:
        listed = schema.get(keyword)
        if isinstance(listed, list):
            closed[keyword] = [_closed_value(value) for value in listed]
    if "items" in schema:
        closed["items"] = _closed_value(schema["items"])
    properties, required = schema.get("properties"), schema.get("required", [])
    if (
        isinstance(properties, Mapping)
        and isinstance(required, list)
        and OPENERS.isdisjoint(schema)
        and all(name in properties for name in required)
    ):
        closed["additionalProperties"] = False
    return closed


def _closed_value(value: object) -> object:
    return _closed(value) if isinstance(value, Mapping) else value
