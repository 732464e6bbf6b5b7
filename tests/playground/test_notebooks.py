"""The notebooks run from top to bottom, and their files hold no output."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[2] / "playground" / "notebooks"
BOOKS = sorted(FOLDER.glob("*.ipynb"))


def test_there_are_three_without_outputs() -> None:
    assert [book.stem for book in BOOKS] == ["several_images", "single_image", "video"]
    for book in BOOKS:
        cells = nbformat.read(book, as_version=4).cells
        assert all(
            not cell.get("outputs") and cell.get("execution_count") is None for cell in cells
        )


@pytest.mark.slow
@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.stem)
def test_it_runs_and_answers_at_every_scale(book: Path) -> None:
    notebook = nbformat.read(book, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(FOLDER)}}).execute()
    cells = [
        cell
        for cell in notebook.cells
        if cell.cell_type == "code" and cell.source.rstrip().endswith("\nanswers")
    ]
    (shown,) = [
        output["data"]["text/plain"]
        for cell in cells
        for output in cell.outputs
        if "data" in output
    ]
    answers = eval(shown)
    assert len(answers) >= 5
    assert all(isinstance(answer, str) and answer for answer in answers.values())
