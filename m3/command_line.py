"""The parser of command lines that verbs use: a mistyped option is answered with the nearest one,
and none is guessed from its first letters.
"""

import argparse
import ast
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from m3.config import WORDS, near_match

UNKNOWN = "unrecognized arguments: "
KINDS = {"int": int, "float": float}
INVALID = re.compile(r"invalid (int|float) value: (.*)", re.DOTALL)
"""As argparse refuses what is no number."""


def row_names(file: Path, table: str) -> tuple[str, ...]:
    """Names of the rows of a literal table in a file of ours, which is read and not imported: a help
    text that lists them waits for no torch.
    """
    for statement in ast.parse(file.read_text(encoding="utf-8")).body:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        targets = [statement.target] if isinstance(statement, ast.AnnAssign) else targets
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        if table in names and isinstance(statement, ast.Assign | ast.AnnAssign):
            assert isinstance(statement.value, ast.Dict)
            keys = [key.value for key in statement.value.keys if isinstance(key, ast.Constant)]
            return tuple(str(key) for key in keys)
    raise AssertionError(f"{file} has no table {table}")


class CommandLine(argparse.ArgumentParser):
    """argparse's, without abbreviations; the process ends with 2 where a line cannot be read."""

    def __init__(
        self,
        prog: str,
        description: str | None,
        epilog: str | None = None,
        formatter_class: type[argparse.HelpFormatter] = argparse.HelpFormatter,
    ) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            formatter_class=formatter_class,
            allow_abbrev=False,
        )

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride] (overloads of argparse)
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse, but an unknown option is told before a required one that is missing."""
        for word in sys.argv[1:] if args is None else args:
            name = word.partition("=")[0]
            if name == "--":
                break
            if name.startswith("--") and name not in self._option_string_actions:
                self.error(f"{UNKNOWN}{word}")
        return super().parse_known_args(args, namespace or argparse.Namespace())

    def error(self, message: str) -> NoReturn:
        """As argparse, with the nearest option behind an unknown one, and kinds of values in words."""
        message = INVALID.sub(
            lambda match: f"expected {WORDS[KINDS[match[1]]]}, got {match[2]}", message
        )
        name = message.removeprefix(UNKNOWN).split()[0].partition("=")[0]
        if message.startswith(UNKNOWN) and name.startswith("-"):
            options = [*self._option_string_actions]
            ending = name.lstrip("-")
            full_names = [
                option for option in options if option.endswith(("-" + ending, "_" + ending))
            ]
            message = f"{message}. {near_match(full_names[0] if full_names else name, options)}"
        super().error(message)
