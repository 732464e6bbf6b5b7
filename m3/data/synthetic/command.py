"""`m3 data tiny`: write the embedded suite to a folder."""

import argparse
import dataclasses
import json
import logging
import os
from pathlib import Path
from typing import Any

from m3.data.synthetic.drawing import Split
from m3.data.synthetic.suite import FAMILIES, baselines, generate, read_rows
from m3.data.synthetic.tokenizer import build_tokenizer
from m3.data.synthetic.vocabulary import IMAGE_SIZE, PATCH_CLASSES, PATCH_SIZE, PATCH_SLOTS

logger = logging.getLogger(__name__)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="m3 data tiny", description="Draw the embedded suite from a seed as parquet."
    )
    made.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder that receives train/, test/, tokenizer/ and suite.json",
    )
    made.add_argument(
        "--train", type=int, default=2000, help="training pictures PER FAMILY (0: none)"
    )
    made.add_argument("--test", type=int, default=200, help="test pictures PER FAMILY (0: none)")
    made.add_argument("--seed", type=int, default=0, help="every picture depends on the seed alone")
    made.add_argument(
        "--families", nargs="+", choices=tuple(FAMILIES), default=tuple(FAMILIES), metavar="FAMILY"
    )
    made.add_argument(
        "--workers",
        type=int,
        default=2,
        help="processes that draw; the result does not depend on it",
    )
    return made


def main(argv: list[str]) -> int:
    """Write the splits asked for, `test/baselines.json`, the tokenizer, and `suite.json`, which
    says how all was made.
    """
    options = parser().parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    wanted: dict[Split, int] = {"train": options.train, "test": options.test}
    for split, number in wanted.items():
        if number:
            files = generate(
                split, number, options.seed, options.out, options.families, options.workers
            )
            logger.info(
                "%s: %d pictures in %d files", split, number * len(options.families), len(files)
            )
            if split == "test":
                found = baselines(read_rows(files, ["family", "question", "answer"]), options.seed)
                blind = {family: dataclasses.asdict(numbers) for family, numbers in found.items()}
                _write_json(options.out / "test" / "baselines.json", blind)
    made = {
        "seed": options.seed,
        "families": list(options.families),
        "train_per_family": options.train,
        "test_per_family": options.test,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "patch_classes": PATCH_CLASSES,
        "patch_slots": PATCH_SLOTS,
    }
    build_tokenizer().save_pretrained(options.out / "tokenizer")
    _write_json(options.out / "suite.json", made)  # last: where it is, all the rest is
    return 0


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """Write aside, then rename: the file is whole or absent."""
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(aside, path)


if __name__ == "__main__":
    import sys

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    raise SystemExit(main(sys.argv[1:]))
