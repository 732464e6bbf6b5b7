"""The first answers of the command line, to a question or a typo, wait for neither torch nor
transformers; tables that are said twice for that are the same.
"""

import json
import subprocess
import sys

import pytest

from m3.bench.options import SHAPE_NAMES, STEP_FORMATS
from m3.bench.shapes import SHAPES
from m3.bench.step import TOLERANCE
from m3.checkpoints.assemble_command import GENERAL_CONNECTORS, KINDS
from m3.checkpoints.command import FORMAT_NAMES
from m3.checkpoints.formats import FORMATS, NATIVE
from m3.command_line import row_names
from m3.inference.command import NUMBER_FORMATS, QUANTISERS
from m3.inference.loading import DTYPES
from m3.inference.quantisation import QUANTISATIONS
from m3.model.connectors import CONNECTORS, required_settings
from m3.nesting import NESTINGS

HEAVY = ("torch", "transformers", "datasets", "pandas", "matplotlib", "lmms_eval", "deepspeed")
RUN = """
import json, sys
import m3
from m3.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
print("\\n" + json.dumps([code, sorted(sys.modules)]))
"""
ANSWERS = (
    ("--help", 0, "usage: m3"),
    ("--version", 0, "m3 "),
    ("", 2, "usage: m3"),
    ("trian", 2, "unknown verb 'trian'. Did you mean 'train'?"),
    ("data chekc", 2, "unknown verb 'chekc'. Did you mean 'check'?"),
    ("bench stpe", 2, "invalid choice: 'stpe'"),
    ("bench step --shap real", 2, "Did you mean '--shape'?"),
    ("bench step --shape reel", 2, "invalid choice: 'reel'"),
    ("bench train --threads many", 2, "--threads: expected a whole number, got 'many'"),
    ("bench sweep --task x", 2, "Did you mean '--tasks'?"),
    ("bench serve --client 3", 2, "Did you mean '--clients'?"),
    ("bench cost m --acelerator H100", 2, "Did you mean '--accelerator'?"),
    ("bench convert --gigabyte 3", 2, "Did you mean '--gigabytes'?"),
    ("bench serve --help", 0, "SIGTERM while all clients wait"),
    ("train --help", 0, "usage: m3 train"),
    ("train", 2, "expected a recipe: a YAML file, or a shipped one (align, "),
    ("train tiny_alscales", 2, "Did you mean 'tiny_all_scales'?"),
    ("train tiny_all_scales --dry-rum", 2, "Did you mean '--dry-run'?"),
    ("train tiny_all_scales --matryoshka_vis_token_scal 1,9", 2, "'--matryoshka_vis_token_scale'"),
    ("train tiny_all_scales --accelerator H10", 2, "invalid choice: 'H10'"),
    ("train tiny_all_scales schedule.stepz=1", 2, "unknown key 'stepz'. Did you mean"),
    ("train tiny_all_scales sheduel.steps=1", 2, "unknown key 'sheduel'. Did you mean"),
    ("train tiny_all_scales data.pack_length=-1", 2, "pack_length must be at least 1"),
    ("train tiny_all_scales --devices 8", 2, "are for --dry-run"),
    ("chat --help", 0, "usage: m3 chat"),
    ("chat --model-path m --matryoshka_vis_token_scal 9", 2, "'--matryoshka_vis_token_scale'"),
    ("chat --model-path m --scale 9", 2, "Did you mean '--matryoshka_vis_token_scale'?"),
    ("chat --model-path m --dtype float23", 2, "invalid choice: 'float23'"),
    ("convert --help", 0, "usage: m3 convert"),
    ("convert a b --formt m3", 2, "Did you mean '--format'?"),
    ("convert a b --to lava-hf", 2, "invalid choice: 'lava-hf'"),
    ("assemble --help", 0, "usage: m3 assemble"),
    ("assemble a --vision v --decoder d --sed 3", 2, "Did you mean '--seed'?"),
    ("data check tiny_alscales", 2, "Did you mean 'tiny_all_scales'?"),
    (
        "data check tiny_router",
        2,
        "it is a recipe of several stages, of a tower, of a budget router",
    ),
    ("data check tiny_all_scales --allw x", 2, "Did you mean '--allow'?"),
    ("data check tiny_all_scales data.pak_length=9", 2, "Did you mean 'pack_length'?"),
    ("data show tiny_all_scales", 2, "the following arguments are required: --out"),
    ("sweep --help", 0, "usage: m3 sweep"),
    ("sweep m --tasks t --scalez 1", 2, "Did you mean '--scales'?"),
    ("sweep m --tasks t --scales 1,x", 2, "such as 36@48, or choices of them"),
    ("sweep m --suite m3_tny", 2, "Did you mean 'm3_tiny'?"),
    ("sweep m --tasks t --methods poling", 2, "Did you mean 'pooling'?"),
    ("sweep m --tasks t --frames many", 2, "frames of a video are a number, or collage"),
    ("sweep m --tasks t --limit 0", 2, "--limit must be at least 1"),
    ("serve --help", 0, "usage: m3 serve"),
    ("serve --model-path m --prot 1", 2, "Did you mean '--port'?"),
    ("serve --model-path m --port many", 2, "--port: expected a whole number, got 'many'"),
    ("serve --model-path m limits.image=4", 2, "Did you mean 'images'?"),
    ("report --help", 0, "usage: m3 report"),
    ("report runs/sweep --format svg", 2, "Did you mean '--formats'?"),
    ("submit --alll runs/sweep", 2, "Did you mean '--all'?"),
    ("data fetch-eval m3_tiny --data-rot x", 2, "Did you mean '--data-root'?"),
    ("doctor --hlep", 2, "unrecognized arguments: --hlep"),
)


@pytest.mark.parametrize(("line", "code", "sentence"), ANSWERS)
def test_a_help_text_or_a_typo_waits_for_no_giant(line: str, code: int, sentence: str) -> None:
    command = [sys.executable, "-c", RUN, *line.split()]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    answer, modules = json.loads(ran.stdout.splitlines()[-1])
    assert answer == code and sentence in ran.stdout + ran.stderr
    assert len(modules) > 50 and not {*HEAVY} & {*modules}


PUBLIC = """
import sys
import m3, m3.inference, m3.nesting, m3.processing, m3.data.formats
assert "torch" not in sys.modules
for module in (m3, m3.inference, m3.nesting, m3.processing, m3.data.formats):
    for name in (*module.__all__, *module.__all__):
        value = getattr(module, name)
        assert type(value).__name__ != "module", name
    try:
        module.nothing
    except AttributeError as error:
        assert "has no attribute 'nothing'" in str(error)
    else:
        raise AssertionError(module)
from transformers import AutoConfig
assert AutoConfig.for_model("m3").model_type == "m3"
"""


def test_public_names_are_there_when_they_are_asked_for() -> None:
    subprocess.run([sys.executable, "-c", PUBLIC], check=True)


def test_names_that_a_help_text_says_are_those_of_the_tables() -> None:
    assert tuple(FORMATS) == FORMAT_NAMES and FORMAT_NAMES[0] == NATIVE
    assert tuple(DTYPES) == NUMBER_FORMATS
    assert {name: row.help for name, row in QUANTISATIONS.items()} == QUANTISERS
    general = tuple(kind for kind in CONNECTORS if not required_settings(kind))
    assert general == GENERAL_CONNECTORS
    assert tuple(NESTINGS) == row_names(KINDS, "NESTINGS")
    assert (tuple(SHAPES), tuple(TOLERANCE)) == (SHAPE_NAMES, STEP_FORMATS)
