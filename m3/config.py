"""Strict YAML to dataclasses, and back.

In: a YAML file, the dataclass it describes, and `key.path=value` overrides. Out: an instance of the
dataclass, or a `ValueError` that names the file (or the override), the place in it, what was
expected and what was got.

A file may open with `base: other.yaml` (relative to itself): mappings merge, anything else is
replaced. Plain scalars follow YAML 1.2, so `1e-4` is a number and `no` a string; PyYAML's default
is YAML 1.1, where both are otherwise.
"""

import dataclasses
import difflib
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import yaml
from yaml.composer import ComposerError

T = TypeVar("T")
Key = tuple[str, ...]
Origins = dict[Key, str]

WORDS: Mapping[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    Path: "a path",
    Any: "any value",
    None: "null",
    types.NoneType: "null",
}
"""Plain kinds as errors call them."""
PLURAL = (int, float, str, Path)
LONGEST_VALUE = 100
"""Characters of a value in an error."""

# tag, pattern, possible first characters ("" stands for an empty value)
_SCALARS: tuple[tuple[str, str, str], ...] = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("int", r"[-+]?(0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan",
        "-+.0123456789",
    ),
    ("merge", r"<<", "<"),
)


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars; a key that stands twice in one mapping is refused, and an alias inside what
    it stands for.

    Both are looked for while nodes are composed: `<<` merges into them later, and there a key may
    stand on both sides.
    """

    yaml_implicit_resolvers = {}

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        # anchors of the mappings and sequences that are being composed
        self._open: list[str | None] = []

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        anchor = None if event is None or isinstance(event, yaml.StreamEndEvent) else event.anchor
        if isinstance(event, yaml.AliasEvent) and anchor in self._open:
            raise ComposerError(
                None, None, f"*{anchor} stands inside &{anchor} itself", event.start_mark
            )
        self._open.append(anchor)
        node = super().compose_node(parent, index)
        self._open.pop()
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        earlier_keys: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in earlier_keys:
                raise ComposerError(None, None, f"key {key.value!r} stands twice", key.start_mark)
            earlier_keys.add(key.value)
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes exactly the strings that `_Loader` would read as something else."""

    yaml_implicit_resolvers = {}

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        _characters = [*_first, ""] if _tag == "null" else [*_first]
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _characters
        )


def load(path: str | Path | None, cls: type[T], overrides: Sequence[str] = ()) -> T:
    """Read `path` (and its bases; None: nothing), apply `overrides` such as `optim.lr=1e-4`,
    decode into `cls`.
    """
    tree, origins = ({}, {}) if path is None else _read(Path(path), ())
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not all(key.split(".")):
            raise ValueError(f"override {override!r}: expected key=value, such as optim.lr=1e-4")
        _set(tree, tuple(key.split(".")), _parse(text, f"override {override!r}"), override, origins)
    return _Decoder("settings" if path is None else str(path), origins).decode(tree, cls, ())


def decode(value: Any, cls: type[T], source: str = "config") -> T:
    """Decode plain dicts, lists and scalars into `cls`; `source` names them in errors."""
    return _Decoder(source, {}).decode(value, cls, ())


def dump(config: Any) -> str:
    """YAML text of a dataclass instance; `load` of it gives an equal instance back."""
    return yaml.dump(_plain(config), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


def check_positive(section: str, **numbers: int | None) -> None:
    """A `ValueError` that names the key of `section` which is given and below 1."""
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"{section}: {name} must be at least 1, got {number}")


def near_match(name: str, known_names: Iterable[str]) -> str:
    """The sentence that ends an error about an unknown name."""
    names = [str(known_name) for known_name in known_names]
    close = difflib.get_close_matches(name, names, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(names) or 'none'}."


def describe(value: Any) -> str:
    """A value of YAML or JSON in an error, as it is written there; long ones are cut."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return "true" if value else "false"
    kind = "a list: " if isinstance(value, (list, tuple)) else ""
    kind = "a mapping: " if isinstance(value, Mapping) else kind
    text = repr(value)
    return kind + (text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]} ...")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {
            field.name: _plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.init
        }
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: `!!int x`
        raise ValueError(f"{source}: not valid YAML: {error}") from error


def _read(path: Path, above: tuple[Path, ...]) -> tuple[dict[str, Any], Origins]:
    """The merged mapping of a file and its bases, and which file each key came from."""
    if path.resolve() in [earlier_path.resolve() for earlier_path in above]:
        raise ValueError(
            f"{path}: its bases lead back to itself: {' -> '.join(p.name for p in (*above, path))}"
        )
    if not path.is_file():
        raise ValueError(f"{path}: no such file" + (f" (the base of {above[-1]})" if above else ""))
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text in UTF-8 ({error})") from error
    content = _parse(text, str(path))
    content = {} if content is None else _plain(content)  # a copy in which anchors share nothing
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a mapping at the top, got {describe(content)}")
    base = content.pop("base", None)
    if base is None:
        tree, origins = {}, {}
    elif isinstance(base, str):
        tree, origins = _read(path.parent / base, (*above, path))
    else:
        raise ValueError(f"{path}: base: expected a file name, got {describe(base)}")
    _merge(tree, content, (), str(path), origins)
    return tree, origins


def _merge(
    into: dict[str, Any], new: dict[str, Any], parent_key: Key, source: str, origins: Origins
) -> None:
    for name, value in new.items():
        full_key = (*parent_key, str(name))
        old = into.get(name)
        if isinstance(value, dict) and isinstance(old, dict):
            _merge(old, value, full_key, source, origins)
        else:
            into[name] = value
            for key in [key for key in origins if key[: len(full_key)] == full_key]:
                del origins[key]
            origins[full_key] = source


def _set(tree: dict[str, Any], key: Key, value: Any, override: str, origins: Origins) -> None:
    """Put one override in its place; a number in the path is a place in a list."""
    node: Any = tree
    for depth, name in enumerate(key):
        last = depth == len(key) - 1
        if isinstance(node, list):
            if not name.isdecimal() or int(name) >= len(node):
                raise ValueError(
                    f"override {override!r}: {'.'.join(key[:depth])} is a list of {len(node)}: "
                    f"expected a place below {len(node)}, got {name!r}"
                )
            index: Any = int(name)
        elif isinstance(node, dict):
            index = name
            if not last and node.get(name) is None:
                node[name] = {}
        else:
            raise ValueError(
                f"override {override!r}: {'.'.join(key[:depth])} is {describe(node)}, not a mapping"
            )
        if last:
            node[index] = value
        else:
            node = node[index]
    for old in [old for old in origins if old[: len(key)] == key]:
        del origins[old]
    origins[key] = f"override {override!r}"


@dataclasses.dataclass(frozen=True)
class _Decoder:
    """Plain values to typed ones.

    `origins` says where a key was written; `source` stands for every other place.
    """

    source: str
    origins: Origins

    def error(
        self, key_path: Key, message: str, written: Key | None = None, is_of_section: bool = False
    ) -> ValueError:
        """The error for `place`; `written` is the key whose origin is named, where that is
        another one. `is_of_section`: about keys below that do not go together, which may stand in
        several files.
        """
        key = key_path if written is None else written
        origins = [self.origins[key[:n]] for n in range(len(key), 0, -1) if key[:n] in self.origins]
        if is_of_section and key_path:
            below = [
                origin for name, origin in self.origins.items() if name[: len(key)] == key != name
            ]
            origins = [", ".join(dict.fromkeys([*origins[:1], *below]))] if below else origins
        return ValueError(
            ": ".join(
                message_part
                for message_part in (next(iter(origins), self.source), ".".join(key_path), message)
                if message_part
            )
        )

    def decode(self, value: Any, kind: Any, key_path: Key) -> Any:
        origin = get_origin(kind)
        if kind is Any:
            return value
        if dataclasses.is_dataclass(kind):
            return self.dataclass(value, cast(type, kind), key_path)
        if origin is Literal:
            # `True == 1`, so the types are compared too
            if any(type(value) is type(choice) and value == choice for choice in get_args(kind)):
                return value
            raise self.error(
                key_path, f"expected {_name(kind)}, got {value!r}.{_suggest(value, get_args(kind))}"
            )
        if origin in (Union, types.UnionType):
            return self.union(value, kind, key_path)
        if origin in (list, tuple, Sequence):
            return self.sequence(value, kind, key_path)
        if kind is dict or origin in (dict, Mapping):
            key_kind, value_kind = get_args(kind) or (Any, Any)
            if not isinstance(value, dict):
                raise self.mismatch(value, kind, key_path)
            return {
                self.decode(key, key_kind, key_path): self.decode(
                    item, value_kind, (*key_path, str(key))
                )
                for key, item in value.items()
            }
        return self.scalar(value, kind, key_path)

    def mismatch(self, value: Any, kind: Any, key_path: Key) -> ValueError:
        hint = ""
        if kind is str and isinstance(value, (bool, int, float)):
            hint = ". Put it in quotes"
        elif kind in (bool, int, float) and isinstance(value, str):
            hint = ". Write true or false" if kind is bool else ". Write a number without quotes"
        return self.error(key_path, f"expected {_name(kind)}, got {describe(value)}{hint}")

    def scalar(self, value: Any, kind: Any, key_path: Key) -> Any:
        if kind is float and type(value) in (int, float):
            return float(value)
        if kind is Path and isinstance(value, str):
            return Path(value)
        if kind in (None, types.NoneType) and value is None:
            return None
        if kind in (bool, int, str) and type(value) is kind:
            return value
        assert kind in (bool, int, float, str, Path, None, types.NoneType), (
            f"{kind} cannot be decoded from YAML"
        )
        raise self.mismatch(value, kind, key_path)

    def sequence(self, value: Any, kind: Any, key_path: Key) -> Any:
        if not isinstance(value, (list, tuple)):
            raise self.mismatch(value, kind, key_path)
        origin, kinds = get_origin(kind), get_args(kind)
        if origin is tuple and kinds[-1] is not Ellipsis:
            if len(value) != len(kinds):
                raise self.error(key_path, f"expected {_name(kind)}; got {len(value)}: {value!r}")
        else:
            kinds = (kinds[0],) * len(value)
        items = [
            self.decode(item, k, (*key_path, str(i)))
            for i, (item, k) in enumerate(zip(value, kinds, strict=True))
        ]
        return items if origin is list else tuple(items)

    def union(self, value: Any, kind: Any, key_path: Key) -> Any:
        """The first member that takes the value; if only one has its shape, that one's error is
        the clearest.
        """
        alike = [member for member in get_args(kind) if _shape(member) == _shape(type(value))]
        if len(alike) == 1:
            return self.decode(value, alike[0], key_path)
        for member in alike or get_args(kind):
            try:
                return self.decode(value, member, key_path)
            except ValueError:
                continue
        raise self.mismatch(value, kind, key_path)

    def dataclass(self, value: Any, cls: type, key_path: Key) -> Any:
        if not isinstance(value, dict):
            raise self.mismatch(value, cls, key_path)
        fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
        for name in value:
            if name not in fields:
                message = f"unknown key {name!r}. {near_match(str(name), fields)}"
                raise self.error(key_path, message, written=(*key_path, str(name)))
        missing = [
            name
            for name, field in fields.items()
            if name not in value
            and field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        ]
        if missing:
            raise self.error(
                key_path, f"missing key{'s' * (len(missing) > 1)}: {', '.join(missing)}"
            )
        kinds = get_type_hints(cls)
        decoded = {
            name: self.decode(item, kinds[name], (*key_path, name)) for name, item in value.items()
        }
        try:
            return cls(**decoded)
        except ValueError as error:  # what the dataclass itself checks, told with its place
            message = str(error).removeprefix(f"{key_path[-1]}: " if key_path else "")
            raise self.error(key_path, message, is_of_section=True) from error


def _shape(kind: Any) -> str:
    """mapping, sequence, null or scalar: enough to choose among the members of a union."""
    origin = get_origin(kind) or kind
    if dataclasses.is_dataclass(origin) or origin in (dict, Mapping):
        return "mapping"
    if origin in (list, tuple, Sequence):
        return "sequence"
    return "null" if origin in (None, types.NoneType) else "scalar"


def _suggest(value: Any, allowed: Sequence[Any]) -> str:
    close = difflib.get_close_matches(
        str(value), [str(allowed_value) for allowed_value in allowed], n=1
    )
    return f" Did you mean {close[0]!r}?" if close else ""


def _name(kind: Any) -> str:
    """The kind in words."""
    origin = get_origin(kind) or kind
    arguments = get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(repr(argument) for argument in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_name(member) for member in arguments)
    if dataclasses.is_dataclass(origin):
        return "a mapping with " + ", ".join(f.name for f in dataclasses.fields(origin) if f.init)
    if origin in (dict, Mapping):
        inner = f" of {_plural(arguments[0])} to {_plural(arguments[1])}" if arguments else ""
        return f"a mapping{inner}"
    if origin is tuple and Ellipsis not in arguments:
        return f"a list of {len(arguments)}: {', '.join(_name(member) for member in arguments)}"
    if origin in (list, tuple, Sequence):
        return f"a list of {_plural(arguments[0])}" if arguments else "a list"
    return WORDS[kind]


def _plural(kind: Any) -> str:
    return f"{WORDS[kind].removeprefix('a ')}s" if kind in PLURAL else f"items, each {_name(kind)}"
