"""`m3 report RUN [OLDER]`: tables, figures and one page of a sweep, from what is on the disk alone.

In: a run folder that `m3 sweep --out` wrote; with a second one, what changed since it. Out, in the
run folder: summary.csv, expert_load.csv (of a mixture of experts), accuracy_vs_cost.png,
report.html, figures/*.{svg,pdf,png}, tables/*.{tex,md}; the table of scores on the screen.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from m3.evaluation.analysis.compare import change_text, compare
from m3.evaluation.analysis.summary import Summary
from m3.evaluation.report.charts import accuracy_figure, save
from m3.evaluation.report.expert_load import write_loads
from m3.evaluation.report.figures import figures
from m3.evaluation.report.html import page
from m3.evaluation.report.table_formats import as_latex, as_markdown, as_text
from m3.evaluation.report.tables import report_tables, write_csv
from m3.files import write_text
from m3.hardware import ACCELERATORS

PRINT = ("svg", "pdf", "png")


def main(argv: list[str]) -> int:
    """Writes the report of a finished (or half-finished) sweep and prints its scores."""
    parser = argparse.ArgumentParser(
        prog="m3 report", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder given to m3 sweep --out")
    parser.add_argument("older", type=Path, nargs="?", help="another such folder, to compare with")
    parser.add_argument(
        "--accelerator", choices=ACCELERATORS, default="H100", help="whose roofline is estimated"
    )
    parser.add_argument(
        "--formats",
        nargs="*",
        choices=PRINT,
        default=PRINT,
        help="files of each figure (default: all); none: no figures",
    )
    arguments = parser.parse_args(argv)
    summary = Summary.read(arguments.run)
    changes = compare(summary, Summary.read(arguments.older)) if arguments.older else []
    tables = report_tables(summary, arguments.accelerator, changes)
    expert_loads = write_loads(summary)
    written_files = [
        write_csv(summary),
        *([expert_loads] if expert_loads else []),
        *draw(summary, arguments.accelerator, arguments.formats),
    ]
    for table in tables:
        write_text(summary.run / "tables" / f"{table.name}.tex", as_latex(table))
        write_text(summary.run / "tables" / f"{table.name}.md", as_markdown(table))
    html_file = summary.run / "report.html"
    write_text(html_file, page(summary, tables))
    reported_changes = [
        change for change in changes if change.task is None or change.is_significant
    ]
    output_lines = [
        as_text(tables[0]),
        "",
        *(change_text(change) for change in reported_changes),
        *([""] if reported_changes else []),
    ]
    print(
        "\n".join([*output_lines, *map(str, [*written_files, html_file, summary.run / "tables"])])
    )
    return 0


def draw(summary: Summary, accelerator: str, formats: Sequence[str]) -> list[Path]:
    """Writes every figure in these formats, the chart of accuracy as a PNG beside the table;
    what to tell of.
    """
    if not formats:
        return []
    figures_folder = summary.run / "figures"
    accuracy_chart = accuracy_figure(summary)
    (png_file,) = save(accuracy_chart, summary.run / "accuracy_vs_cost", ("png",))
    save(
        accuracy_chart,
        figures_folder / "accuracy_vs_cost",
        [file_format for file_format in formats if file_format != "png"],
    )
    for figure_name, figure in figures(summary, accelerator).items():
        save(figure, figures_folder / figure_name, formats)
    return [png_file, figures_folder]
