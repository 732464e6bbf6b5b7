"""`m3 data show RECIPE --out page.html`: samples with their masks, as one device would train
them, on one HTML page.
"""

from dataclasses import replace
from pathlib import Path

from m3.command_line import CommandLine
from m3.files import write_text
from m3.training.command import read_model_recipe


def main(argv: list[str]) -> int:
    """Writes the page; broken samples are shown as what they are."""
    parser = CommandLine("m3 data show", __doc__)
    parser.add_argument("recipe", help="a YAML file, or the name of a shipped recipe")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="for example schedule.seed=1"
    )
    parser.add_argument(
        "--out", required=True, metavar="page.html", help="where the page is written"
    )
    parser.add_argument(
        "-n", type=int, default=20, metavar="N", help="how many samples (default: 20)"
    )
    parser.add_argument(
        "--from",
        type=int,
        default=0,
        dest="first",
        metavar="POSITION",
        help="of the first (default: 0)",
    )
    arguments = parser.parse_intermixed_args(argv)  # options may stand between key=value
    recipe = read_model_recipe(arguments.recipe, arguments.overrides)
    # torch is imported once command line and recipe are known to be good
    from m3.data.checking.sample_check import SampleLimits
    from m3.data.checking.sample_page import sample_page
    from m3.data.mixture import read_mixture
    from m3.training.setup.resolved import ResolvedRun

    resolved = ResolvedRun(recipe)
    shown_data, schedule = replace(recipe.data, broken="skip", lengths=None), recipe.schedule
    mixture = read_mixture(
        shown_data,
        seed=schedule.seed,
        step_samples=resolved.step_samples,
        steps=schedule.steps,
        epochs=schedule.epochs,
    )
    limits = SampleLimits(
        scales=recipe.matryoshka_vis_token_scale,
        max_length=shown_data.longest,
        max_images=None if shown_data.pack_length is None else shown_data.max_images_per_row,
        scale_weights=recipe.scale_weights,
    )
    source_names = [data_source.name for data_source in shown_data.used_sources]
    positions = range(arguments.first, min(arguments.first + arguments.n, len(mixture)))
    out = Path(arguments.out)
    write_text(out, sample_page(mixture, source_names, positions, resolved.processor, limits))
    print(f"{len(positions)} samples: {out}")
    return 0
