"""The files of a report: from a run folder to tables, figures and the page.

in:  the folder of a sweep, and perhaps an older one;
out: the files that `m3 report` names, in the folder.
"""

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


def write_report(run: Path, older: Path | None, accelerator: str, formats: Sequence[str]) -> str:
    """Write the report of a finished (or half-finished) sweep; returns its scores and the names of the
    files, for the screen.
    """
    summary = Summary.read(run)
    changes = compare(summary, Summary.read(older)) if older else []
    tables = report_tables(summary, accelerator, changes)
    expert_loads = write_loads(summary)
    written_files = [
        write_csv(summary),
        *([expert_loads] if expert_loads else []),
        *draw(summary, accelerator, formats),
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
    return "\n".join(
        [*output_lines, *map(str, [*written_files, html_file, summary.run / "tables"])]
    )


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
