"""The verb table and what happens on the way to a verb.

Verbs of the tests are real modules written to a folder.
"""

import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

import pytest

from m3.cli import VERBS, Verb, dispatch, main

MODULES = {
    name: verb.module
    for above, table in [("", VERBS), *((f"{name} ", verb.verbs) for name, verb in VERBS.items())]
    for name, verb in ((f"{above}{name}", verb) for name, verb in table.items())
    if verb.module is not None
}
"""Every verb, and those of a verb behind its name."""

MODULE = """
import sys

def main(argv):
    if argv == ["value"]:
        raise ValueError("scale 100 is not reachable. Reachable: 1, 4")
    if argv == ["file"]:
        raise FileNotFoundError("no such model")
    if argv == ["interrupt"]:
        raise KeyboardInterrupt
    if argv == ["bug"]:
        raise RuntimeError("a bug")
    if argv == ["optional"]:
        import package_that_nobody_has
    if argv == ["ours"]:
        import m3.no_such_module
    print("ran", argv)
    return 7
"""


@pytest.fixture
def verbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mapping[str, Verb]]:
    (tmp_path / "verb_of_a_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("M3_TRACEBACK", raising=False)
    yield {
        "one": Verb("verb_of_a_test", "the first verb"),
        "three": Verb("module_that_is_not_there", "never imported"),
    }
    sys.modules.pop("verb_of_a_test", None)


def test_the_rest_goes_to_the_verb_and_its_code_comes_back(
    verbs: Mapping[str, Verb], capsys: pytest.CaptureFixture[str]
) -> None:
    assert dispatch("m3", verbs, ["one", "a", "--b"]) == 7
    assert capsys.readouterr().out == "ran ['a', '--b']\n"


def test_only_the_verb_asked_for_is_imported(
    verbs: Mapping[str, Verb], capsys: pytest.CaptureFixture[str]
) -> None:
    assert dispatch("m3", verbs, ["--help"]) == 0
    assert "one    the first verb\n  three  never imported" in capsys.readouterr().out
    assert "verb_of_a_test" not in sys.modules


def test_without_a_verb_the_table_is_shown_and_the_code_is_2(
    verbs: Mapping[str, Verb], capsys: pytest.CaptureFixture[str]
) -> None:
    assert dispatch("m3", verbs, []) == 2
    assert "usage: m3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("verb", "answer"),
    [
        ("thre", "m3: unknown verb 'thre'. Did you mean 'three'?\n"),
        ("zz", "m3: unknown verb 'zz'. Known: one, three.\n"),
    ],
)
def test_an_unknown_verb_is_answered_with_the_near_match(
    verbs: Mapping[str, Verb], capsys: pytest.CaptureFixture[str], verb: str, answer: str
) -> None:
    assert dispatch("m3", verbs, [verb]) == 2
    assert capsys.readouterr().err == answer


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "value",
            "m3 one: scale 100 is not reachable. Reachable: 1, 4  (M3_TRACEBACK=1 shows where)\n",
        ),
        ("file", "m3 one: no such model  (M3_TRACEBACK=1 shows where)\n"),
        (
            "optional",
            "m3 one: No module named 'package_that_nobody_has'. Run `m3 doctor`: it says what to "
            "install"
            "  (M3_TRACEBACK=1 shows where)\n",
        ),
    ],
)
def test_a_users_mistake_is_one_line(
    verbs: Mapping[str, Verb], capsys: pytest.CaptureFixture[str], argument: str, message: str
) -> None:
    assert dispatch("m3", verbs, ["one", argument]) == 2
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("how", ["flag", "environment"])
def test_the_traceback_can_be_asked_for(
    verbs: Mapping[str, Verb],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    if how == "environment":
        monkeypatch.setenv("M3_TRACEBACK", "1")
    assert dispatch("m3", verbs, [*(["--traceback"] if how == "flag" else []), "one", "value"]) == 2
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown
    assert shown.endswith("m3 one: scale 100 is not reachable. Reachable: 1, 4\n")


def test_our_own_bugs_keep_their_traceback(verbs: Mapping[str, Verb]) -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        dispatch("m3", verbs, ["one", "bug"])
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        dispatch("m3", verbs, ["one", "ours"])


def test_interrupting_a_verb_leaves_130(
    verbs: Mapping[str, Verb], capsys: pytest.CaptureFixture[str]
) -> None:
    assert dispatch("m3", verbs, ["one", "interrupt"]) == 130
    assert capsys.readouterr().err == "m3 one: interrupted\n"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"m3 {metadata.version('m3')}\n"


def test_data_has_verbs_of_its_own() -> None:
    assert [name for name in MODULES if name.startswith("data")] == [
        "data check",
        "data show",
        "data tiny",
        "data fetch-eval",
    ]


@pytest.mark.parametrize("name", MODULES)
def test_every_verb_has_a_module_with_a_main(name: str) -> None:
    module = MODULES[name]
    assert importlib.util.find_spec(module) is not None, f"{module} does not exist"
    assert callable(importlib.import_module(module).main)


@pytest.mark.parametrize("name", MODULES)
def test_every_verb_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([*name.split(), "--help"])
    assert left.value.code == 0
    assert f"usage: m3 {name}" in capsys.readouterr().out


def test_verbs_of_a_verb_are_a_table_too(
    verbs: Mapping[str, Verb], capsys: pytest.CaptureFixture[str]
) -> None:
    table = {"above": Verb(None, "has verbs", verbs)}
    assert dispatch("m3", table, ["above", "one", "a"]) == 7
    assert dispatch("m3", table, ["above", "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("ran ['a']\nusage: m3 above ")
    assert "one    the first verb" in shown
    assert dispatch("m3", table, ["above", "thre"]) == 2
    assert capsys.readouterr().err == "m3 above: unknown verb 'thre'. Did you mean 'three'?\n"
    assert dispatch("m3", table, ["--traceback", "above", "one", "value"]) == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_help_imports_no_verb() -> None:
    code = (
        "import sys; from m3.cli import main; main(['--help']); "
        "print([name for name in ('lmms_eval', 'datasets', 'matplotlib', 'peft') if name in "
        "sys.modules])"
    )
    environment = {**os.environ, "M3_TRACEBACK": "0"}
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert ran.stdout.splitlines()[-1] == "[]"


def test_entry_points_lead_here() -> None:
    distribution = metadata.distribution("m3")
    found = {(point.group, point.name): point.value for point in distribution.entry_points}
    assert found == {
        ("console_scripts", "m3"): "m3.cli:main",
        ("lmms_eval.models", "m3"): "m3.evaluation.harness.plugin:manifests",
    }
