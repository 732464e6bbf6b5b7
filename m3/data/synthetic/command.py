"""`m3 data tiny`: write the embedded suite to a folder."""

import argparse
import dataclasses
import json
import logging
from pathlib import Path

from m3.data.synthetic.drawing import Split
from m3.data.synthetic.suite import FAMILIES, baselines, generate, read_rows
from m3.data.synthetic.tokenizer import build_tokenizer
from m3.data.synthetic.vocabulary import IMAGE_SIZE, PATCH_CLASSES, PATCH_SIZE, PATCH_SLOTS
from m3.files import write_text

logger = logging.getLogger(__name__)


def make_parser() -> argparse.ArgumentParser:
    argument_parser = argparse.ArgumentParser(
        prog="m3 data tiny", description="Draw the embedded suite from a seed as parquet."
    )
    argument_parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder that receives train/, test/, tokenizer/ and suite.json",
    )
    argument_parser.add_argument(
        "--train", type=int, default=2000, help="training pictures PER FAMILY (0: none)"
    )
    argument_parser.add_argument(
        "--test", type=int, default=200, help="test pictures PER FAMILY (0: none)"
    )
    argument_parser.add_argument(
        "--seed", type=int, default=0, help="every picture depends on the seed alone"
    )
    argument_parser.add_argument(
        "--families", nargs="+", choices=tuple(FAMILIES), default=tuple(FAMILIES), metavar="FAMILY"
    )
    argument_parser.add_argument(
        "--workers",
        type=int,
        default=2,
        help="processes that draw; the result does not depend on it",
    )
    return argument_parser


def main(argv: list[str]) -> int:
    """Write the splits asked for, `test/baselines.json`, the tokenizer and `suite.json`.

    The last holds the settings, and is there only when all the rest is.
    """
    options = make_parser().parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    split_sizes: dict[Split, int] = {"train": options.train, "test": options.test}
    for split, count_per_family in split_sizes.items():
        if count_per_family:
            files = generate(
                split,
                count_per_family,
                options.seed,
                options.out,
                options.families,
                options.workers,
            )
            logger.info(
                "%s: %d pictures in %d files",
                split,
                count_per_family * len(options.families),
                len(files),
            )
            if split == "test":
                family_baselines = baselines(
                    read_rows(files, ["family", "question", "answer"]), options.seed
                )
                baseline_rows = {
                    family: dataclasses.asdict(numbers)
                    for family, numbers in family_baselines.items()
                }
                write_text(
                    options.out / "test" / "baselines.json",
                    json.dumps(baseline_rows, indent=1) + "\n",
                )
    settings = {
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
    # last: where it is, all the rest is
    write_text(options.out / "suite.json", json.dumps(settings, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    import sys

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    raise SystemExit(main(sys.argv[1:]))
