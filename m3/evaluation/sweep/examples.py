"""A few documents of each task for the report: those first whose score the number of tokens
changes.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from m3.evaluation.harness.lmms_model import pictures_of, shown
from m3.evaluation.harness.tasks import FOREIGN, LoadedTask
from m3.evaluation.results.run_folder import CellRow, Example, read_keys, write_json
from m3.evaluation.results.store import Store
from m3.files import atomic_file
from m3.processing.video import Sampling

logger = logging.getLogger(__name__)

EXAMPLE_PIXELS = 448
EXAMPLES_PER_TASK = 6
QUALITY = 90
"""Of WebP: a photograph takes some 50 KB, so that a page of twenty tasks is a few MB; as PNG it
would be ten times that.
"""


def write_examples(
    run: Path,
    model: str,
    tasks: Sequence[LoadedTask],
    scales: Sequence[int | str],
    cells: Sequence[CellRow],
    sampling: Sampling,
) -> None:
    """`examples/`: pictures, and examples.json.

    Tasks with a failed cell, and documents without a picture, are left out.
    """
    examples: list[Example] = []
    with Store(run / "store") as store:
        for loaded in tasks:
            of_task = [cell for cell in cells if cell.task == loaded.name and cell.model == model]
            if not of_task or any(cell.status == "failed" for cell in of_task):
                continue
            scale_keys = [read_keys(run, model, loaded.name, scale) for scale in scales]
            sign = -1 if loaded.higher_is_better(loaded.metric) is False else 1
            gain = {
                doc_id: sign * store.scores(scale_keys[-1][doc_id]).get(loaded.metric, 0.0)
                - sign * store.scores(scale_keys[0][doc_id]).get(loaded.metric, 0.0)
                for doc_id in scale_keys[-1]
            }
            for doc_id in sorted(gain, key=lambda doc_id: (-gain[doc_id], doc_id))[
                :EXAMPLES_PER_TASK
            ]:
                try:
                    examples += _write_example(run, loaded, doc_id, sampling)
                # a task's code, asked for what scoring did not need; the scores are there
                except FOREIGN as error:
                    logger.warning(
                        "document %d of %s is not shown in the report: %s",
                        doc_id,
                        loaded.name,
                        error,
                    )
    write_json(run / "examples" / "examples.json", [vars(example) for example in examples])


def _write_example(run: Path, loaded: LoadedTask, doc_id: int, sampling: Sampling) -> list[Example]:
    document = loaded.task.eval_docs[doc_id]
    question, visuals = shown(loaded.task, document)
    if not visuals:
        return []
    image = pictures_of(visuals[0], sampling)[0].image
    small = image.copy()
    small.thumbnail((EXAMPLE_PIXELS, EXAMPLE_PIXELS))
    image_file = f"{loaded.name}-{doc_id}.webp"
    with atomic_file(run / "examples" / image_file) as temporary_file:
        small.save(temporary_file, "WEBP", quality=QUALITY)
    target_text = str(loaded.task.doc_to_target(document))
    return [
        Example(loaded.name, doc_id, question, target_text, image_file, [image.height, image.width])
    ]
