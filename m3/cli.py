"""`m3 <verb>`: one table of verbs.

A verb's module is imported when that verb is asked for, and no other.
"""

import importlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata

from m3.config import near_match
from m3.text_table import align_columns


@dataclass(frozen=True)
class Verb:
    """`module` has `main(argv: list[str]) -> int`; `help` is its line in the table of verbs.

    A verb with `verbs` of its own has no module.
    """

    module: str | None
    help: str
    verbs: Mapping[str, "Verb"] = field(default_factory=dict)


DATA_VERBS: Mapping[str, Verb] = {
    "check": Verb(
        "m3.training.checks.data_check",
        "read everything a recipe names, and say what is wrong: RECIPE",
    ),
    "show": Verb(
        "m3.training.checks.data_show",
        "samples with their masks, as they are trained, on a page: RECIPE --out page.html",
    ),
    "tiny": Verb(
        "m3.data.synthetic.command",
        "draw the embedded suite: training parquet and the test set of m3_tiny",
    ),
    "fetch-eval": Verb(
        "m3.evaluation.harness.download",
        "copy a suite's data sets from the hub: SUITE --data-root DIR",
    ),
}
"""`m3 data VERB`. Their modules lie in several layers, which the data may not know."""

VERBS: Mapping[str, Verb] = {
    "train": Verb(
        "m3.train",
        "train a model over all its scales, or pre-train a vision tower: RECIPE [key=value ...]",
    ),
    "chat": Verb(
        "m3.inference.command",
        "ask a model about images and videos: --model-path MODEL --image-file FILE",
    ),
    "serve": Verb(
        "m3.serving.command", "a model behind OpenAI's API: --model-path MODEL --port 8000"
    ),
    "sweep": Verb(
        "m3.evaluation.sweep.command",
        "evaluate models at every scale, each image encoded once: MODEL ... --tasks T --scales S",
    ),
    "submit": Verb(
        "m3.evaluation.harness.submit",
        "collect the files that benchmarks' servers take, one per model and scale",
    ),
    "report": Verb(
        "m3.evaluation.report.command",
        "table, charts and one HTML page of accuracy against cost, from a finished sweep",
    ),
    "convert": Verb(
        "m3.checkpoints.command",
        "a checkpoint of another format to ours, or ours to another: SOURCE DEST [--to FORMAT]",
    ),
    "assemble": Verb(
        "m3.checkpoints.assemble_command",
        "a new model of any vision encoder and any decoder: DEST --vision V --decoder D",
    ),
    "data": Verb(
        None,
        "look at data before training: check RECIPE, show RECIPE; draw the embedded suite: tiny; "
        "copy benchmarks: fetch-eval",
        DATA_VERBS,
    ),
    "bench": Verb(
        "m3.bench.command",
        "measure the training step and the sweep against the published way, as ratios",
    ),
    "doctor": Verb("m3.doctor", "check this machine and what is installed, and say what to do"),
}


_WRONG_PATHS = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
"""What a path that the user gave may run into; other errors of the system are shown whole."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Exit codes: 0 done, 1 a check failed, 2 a mistake of the user (one line), 130 interrupted.
    """
    return dispatch("m3", VERBS, list(sys.argv[1:] if argv is None else argv))


def dispatch(
    program: str, verbs: Mapping[str, Verb], arguments: list[str], full_traceback: bool = False
) -> int:
    """Find the verb that `arguments` open with and run its `main` on the rest.

    The traceback of a user's mistake is shown with `--traceback` before the verb, or M3_TRACEBACK=1
    in the environment.
    """
    full_traceback |= os.environ.get("M3_TRACEBACK") == "1"
    if arguments[:1] == ["--traceback"]:
        full_traceback, arguments = True, arguments[1:]
    if arguments[:1] == ["--version"]:
        print(f"m3 {metadata.version('m3')}")
        return 0
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage(program, verbs))
        return 0 if arguments else 2
    name, rest = arguments[0], arguments[1:]
    if name not in verbs:
        print(f"{program}: unknown verb {name!r}. {near_match(name, verbs)}", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    # ours alone: other libraries tell of every font they embed
    logging.getLogger("m3").setLevel(logging.INFO)
    program, verb = f"{program} {name}", verbs[name]
    if verb.module is None:
        return dispatch(program, verb.verbs, rest, full_traceback)
    return _run(program, verb.module, rest, full_traceback)


def _run(program: str, module: str, arguments: list[str], full_traceback: bool) -> int:
    try:
        run: Callable[[list[str]], int] = importlib.import_module(module).main
        return run(arguments)
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "m3":
            raise  # our own bug
        _complain(program, f"{error}. Run `m3 doctor`: it says what to install", full_traceback)
        return 2
    except (ValueError, *_WRONG_PATHS) as error:
        _complain(program, str(error), full_traceback)
        return 2


def _complain(program: str, message: str, full_traceback: bool) -> None:
    if full_traceback:
        traceback.print_exc()
    print(
        f"{program}: {message}" + ("" if full_traceback else "  (M3_TRACEBACK=1 shows where)"),
        file=sys.stderr,
    )


def _usage(program: str, verbs: Mapping[str, Verb]) -> str:
    lines = [f"usage: {program} [--version] [--traceback] VERB ...", "", "verbs:"]
    verb_rows = [(name, verb.help) for name, verb in verbs.items()]
    lines += [f"  {line}" for line in align_columns(verb_rows, left_columns=2)]
    return "\n".join([*lines, "", f"`{program} VERB --help` describes one verb."])


if __name__ == "__main__":
    raise SystemExit(main())
