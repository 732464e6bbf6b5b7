"""The strict YAML decoder: what it accepts, what it refuses and in which words."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from m3.config import decode, dump, load


@dataclass(frozen=True)
class Optim:
    lr: float
    steps: int = 10
    kind: Literal["adamw", "sgd"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)


@dataclass(frozen=True)
class Part:
    name: str
    lr: float | None = None


@dataclass(frozen=True)
class Recipe:
    optim: Optim
    out: Path = Path("runs/one")
    scales: tuple[int, ...] = (1, 9)
    parts: list[Part] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)
    grid: int | tuple[int, int] = 12
    stop: Part | None = None
    free: Any = None
    raw: dict = field(default_factory=dict)
    packed: bool = True

    def __post_init__(self) -> None:
        if list(self.scales) != sorted(self.scales):
            raise ValueError(f"scales must ascend, got {self.scales}")


FULL = """
optim: {lr: 1e-4, steps: 3, kind: sgd, betas: [0, 0.5]}
out: runs/two
scales: [1, 4, 9]
parts:
  - name: tower
    lr: 1e-5
  - name: "007"
weights: {a: 1, b: 2.5}
grid: [12, 24]
stop: {name: "no"}
free: {x: [1, two]}
raw: {model_type: x, 7: [1.5]}
packed: false
"""
DECODED = Recipe(
    optim=Optim(lr=1e-4, steps=3, kind="sgd", betas=(0.0, 0.5)),
    out=Path("runs/two"),
    scales=(1, 4, 9),
    parts=[Part("tower", 1e-5), Part("007")],
    weights={"a": 1.0, "b": 2.5},
    grid=(12, 24),
    stop=Part("no"),
    free={"x": [1, "two"]},
    raw={"model_type": "x", 7: [1.5]},
    packed=False,
)


def write(folder: Path, text: str, name: str = "tiny.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def refusal(path: Path, *overrides: str) -> str:
    """The error text, with the folder of the file taken out."""
    with pytest.raises(ValueError, match=r".") as caught:
        load(path, Recipe, overrides)
    return str(caught.value).replace(str(path.parent) + "/", "")


def test_everything_decodes_with_its_type(tmp_path: Path) -> None:
    decoded = load(write(tmp_path, FULL), Recipe)
    assert decoded == DECODED
    assert [type(beta) for beta in decoded.optim.betas] == [float, float]


def test_dump_round_trips(tmp_path: Path) -> None:
    assert load(write(tmp_path, dump(DECODED)), Recipe) == DECODED


@pytest.mark.parametrize(
    "text",
    ["1e-4", "7", "true", "null", "~", "", ".5", "0x1F", "<<", "no", "2024-01-01", "1:30", "a: b"],
)
def test_strings_that_look_like_something_else_round_trip(tmp_path: Path, text: str) -> None:
    config = Part(name=text)
    assert load(write(tmp_path, dump(config)), Part) == config


@pytest.mark.parametrize("number", [1e-4, 1e-05, 1e20, 3.0, 0.1, -2.5e-12, float("inf")])
def test_floats_round_trip(tmp_path: Path, number: float) -> None:
    assert load(write(tmp_path, dump(Optim(lr=number))), Optim) == Optim(lr=number)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("2.e3", 2e3),
        (".5", 0.5),
        ("1_000", 1000),
        ("no", "no"),
        ("1:30", "1:30"),
        ("010", 10.0),
    ],
)
def test_plain_scalars_follow_yaml_1_2(tmp_path: Path, text: str, value: object) -> None:
    read = load(write(tmp_path, f"optim: {{lr: 1}}\nfree: {text}\n"), Recipe).free
    assert read == value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optim: {lrr: 1}", "tiny.yaml: optim: unknown key 'lrr'. Did you mean 'lr'?"),
        (
            "optim: {lr: 1, zzz: 1}",
            "tiny.yaml: optim: unknown key 'zzz'. Known: lr, steps, kind, betas.",
        ),
        ("{}", "tiny.yaml: missing key: optim"),
        ("optim: {}", "tiny.yaml: optim: missing key: lr"),
        ("optim: 3", "tiny.yaml: optim: expected a mapping with lr, steps, kind, betas, got 3"),
        (
            "optim: {lr: '1e-4'}",
            "tiny.yaml: optim.lr: expected a number, got '1e-4'. Write a number without quotes",
        ),
        ("optim: {lr: true}", "tiny.yaml: optim.lr: expected a number, got true"),
        ("optim: {lr: }", "tiny.yaml: optim.lr: expected a number, got nothing (null)"),
        ("optim: {lr: 1, steps: 2.0}", "tiny.yaml: optim.steps: expected a whole number, got 2.0"),
        (
            "optim: {lr: 1, steps: true}",
            "tiny.yaml: optim.steps: expected a whole number, got true",
        ),
        (
            "optim: {lr: 1, kind: adam}",
            "tiny.yaml: optim.kind: expected one of 'adamw', 'sgd', got 'adam'. Did you mean "
            "'adamw'?",
        ),
        (
            "optim: {lr: 1, betas: [1]}",
            "tiny.yaml: optim.betas: expected a list of 2: a number, a number; got 1: [1]",
        ),
        (
            "optim: {lr: 1}\nscales: [1, x]",
            "tiny.yaml: scales.1: expected a whole number, got 'x'. Write a number without quotes",
        ),
        ("optim: {lr: 1}\nscales: 9", "tiny.yaml: scales: expected a list of whole numbers, got 9"),
        ("optim: {lr: 1}\nscales: [9, 1]", "tiny.yaml: scales must ascend, got (9, 1)"),
        (
            "optim: {lr: 1}\nparts: [{name: 7}]",
            "tiny.yaml: parts.0.name: expected a text, got 7. Put it in quotes",
        ),
        (
            "optim: {lr: 1}\nweights: {a: b}",
            "tiny.yaml: weights.a: expected a number, got 'b'. Write a number without quotes",
        ),
        (
            "optim: {lr: 1}\nweights: {1: 2}",
            "tiny.yaml: weights: expected a text, got 1. Put it in quotes",
        ),
        (
            "optim: {lr: 1}\nweights: [1]",
            "tiny.yaml: weights: expected a mapping of texts to numbers, got a list: [1]",
        ),
        ("optim: {lr: 1}\nraw: [1]", "tiny.yaml: raw: expected a mapping, got a list: [1]"),
        (
            "optim: {lr: 1}\ngrid: {a: 1}",
            "tiny.yaml: grid: expected a whole number or a list of 2: a whole number, a whole number, got a mapping: {'a': 1}",
        ),
        (
            "optim: {lr: 1}\nstop: {nam: x}",
            "tiny.yaml: stop: unknown key 'nam'. Did you mean 'name'?",
        ),
        (
            "optim: {lr: 1}\npacked: yes",
            "tiny.yaml: packed: expected true or false, got 'yes'. Write true or false",
        ),
        ("- 1", "tiny.yaml: expected a mapping at the top, got a list: [1]"),
        ("base: 3", "tiny.yaml: base: expected a file name, got 3"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, text: str, expected: str) -> None:
    assert refusal(write(tmp_path, text)) == expected


@pytest.mark.parametrize(
    "text", ["optim: [", "optim: {lr: 1, lr: 2}", "a: !!python/object:os.system {}"]
)
def test_what_is_not_plain_yaml_is_refused(tmp_path: Path, text: str) -> None:
    assert refusal(write(tmp_path, text)).startswith("tiny.yaml: not valid YAML: ")


def test_a_merged_key_may_stand_on_both_sides_however_deep(tmp_path: Path) -> None:
    text = "optim: {lr: 1}\nraw:\n  deep:\n    one: &one {k: 1, j: 2}\n    two: &two {<<: *one, k: 3}\nfree: {<<: *two, k: 4}\n"
    read = load(write(tmp_path, text), Recipe)
    assert read.raw == {"deep": {"one": {"k": 1, "j": 2}, "two": {"k": 3, "j": 2}}}
    assert read.free == {"k": 4, "j": 2}


@pytest.mark.parametrize("text", ["raw: &a {b: *a}", "scales: &a [1, *a]", "raw: &a {b: {<<: *a}}"])
def test_an_alias_inside_what_it_stands_for_is_refused(tmp_path: Path, text: str) -> None:
    assert refusal(write(tmp_path, text)).startswith(
        "tiny.yaml: not valid YAML: *a stands inside &a itself"
    )


def test_what_cannot_be_read_names_the_file(tmp_path: Path) -> None:
    assert refusal(write(tmp_path, "optim: {lr: !!float x}")).startswith(
        "tiny.yaml: not valid YAML: could not convert"
    )
    (tmp_path / "tiny.yaml").write_bytes(b"out: \xff")
    assert refusal(tmp_path / "tiny.yaml").startswith("tiny.yaml: not a text in UTF-8 (")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.yaml") == "none.yaml: no such file"


def test_base_merges_deeply_and_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path, "optim: {lr: 1, steps: 7}\nscales: [1, 4]\n", "top.yaml")
    write(tmp_path, "base: ../top.yaml\noptim: {lr: 2}\n", "deep/middle.yaml")
    leaf = write(tmp_path, "base: deep/middle.yaml\nscales: [9]\n", "leaf.yaml")
    assert load(leaf, Recipe) == Recipe(optim=Optim(lr=2.0, steps=7), scales=(9,))


def test_a_mistake_in_the_base_names_the_base(tmp_path: Path) -> None:
    write(tmp_path, "optim: {lr: x}\n", "top.yaml")
    leaf = write(tmp_path, "base: top.yaml\noptim: {steps: 1}\n")
    assert (
        refusal(leaf)
        == "top.yaml: optim.lr: expected a number, got 'x'. Write a number without quotes"
    )
    assert load(leaf, Recipe, ["optim.lr=1"]).optim == Optim(lr=1.0, steps=1)


@dataclass
class Pair:
    """Exactly one of two."""

    one: int | None = None
    other: int | None = None

    def __post_init__(self) -> None:
        if (self.one is None) == (self.other is None):
            raise ValueError("pair: give exactly one of one and other")


@dataclass
class WithPair:
    pair: Pair


def test_keys_that_do_not_go_together_are_told_with_all_their_files(tmp_path: Path) -> None:
    write(tmp_path, "pair: {one: 1}\n", "top.yaml")
    leaf = write(tmp_path, "base: top.yaml\npair: {other: 2}\n", "leaf.yaml")
    with pytest.raises(ValueError, match="pair") as refused:
        load(leaf, WithPair)
    message = str(refused.value).replace(f"{tmp_path}/", "")
    assert message == "top.yaml, leaf.yaml: pair: give exactly one of one and other"
    with pytest.raises(ValueError, match="pair") as refused:
        load(tmp_path / "top.yaml", WithPair, ["pair.other=2"])
    message = str(refused.value).replace(f"{tmp_path}/", "")
    assert message == ("top.yaml, override 'pair.other=2': pair: give exactly one of one and other")


def test_bases_that_lead_nowhere(tmp_path: Path) -> None:
    write(tmp_path, "base: two.yaml\n", "one.yaml")
    two = write(tmp_path, "base: one.yaml\n", "two.yaml")
    assert (
        refusal(two) == "two.yaml: its bases lead back to itself: two.yaml -> one.yaml -> two.yaml"
    )
    assert (
        refusal(write(tmp_path, "base: none.yaml"))
        == "none.yaml: no such file (the base of tiny.yaml)"
    )


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("optim.lr=1e-3", lambda r: r.optim.lr, 1e-3),
        ("scales=[4, 16]", lambda r: r.scales, (4, 16)),
        ("parts.1.lr=0.5", lambda r: r.parts[1].lr, 0.5),
        ("weights.c=3", lambda r: r.weights, {"a": 1.0, "b": 2.5, "c": 3.0}),
        ("stop=null", lambda r: r.stop, None),
        ("out=a=b", lambda r: r.out, Path("a=b")),
        ("free.x=", lambda r: r.free, {"x": None}),
    ],
)
def test_overrides(tmp_path: Path, override: str, place: Any, value: object) -> None:
    assert place(load(write(tmp_path, FULL), Recipe, [override])) == value


def test_an_override_makes_the_section_it_needs(tmp_path: Path) -> None:
    assert load(write(tmp_path, "optim: \n"), Recipe, ["optim.lr=2", "stop.name=x"]).stop == Part(
        "x"
    )


def test_an_override_does_not_leak_through_an_anchor(tmp_path: Path) -> None:
    path = write(tmp_path, "optim: {lr: 1}\nparts: [&one {name: a}, *one]\n")
    assert load(path, Recipe, ["parts.0.name=b"]).parts == [Part("b"), Part("a")]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optim.lrr=1", "override 'optim.lrr=1': optim: unknown key 'lrr'. Did you mean 'lr'?"),
        (
            "optim.lr=x",
            "override 'optim.lr=x': optim.lr: expected a number, got 'x'. Write a "
            "number without quotes",
        ),
        ("optim.lr", "override 'optim.lr': expected key=value, such as optim.lr=1e-4"),
        ("optim..lr=1", "override 'optim..lr=1': expected key=value, such as optim.lr=1e-4"),
        ("packed.x=1", "override 'packed.x=1': packed is false, not a mapping"),
        (
            "parts.2.lr=1",
            "override 'parts.2.lr=1': parts is a list of 2: expected a place below 2, got '2'",
        ),
    ],
)
def test_a_mistake_in_an_override_names_the_override(
    tmp_path: Path, override: str, expected: str
) -> None:
    assert refusal(write(tmp_path, FULL), override) == expected


def test_decode_names_its_source() -> None:
    with pytest.raises(ValueError, match=re.escape("one: lr: expected a number, got 'a'")):
        decode({"lr": "a"}, Optim, "one")
