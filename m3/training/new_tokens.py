"""Tokens that no pre-training has seen: which rows of the decoder's tables train where the tables
themselves are frozen.

in: a recipe, the model's configuration, the tokens that answers hold; out: the rows to train and
their rate, and sentences about tokens that the model could never learn to say. An adapter leaves
both tables as they are, and so does a frozen decoder; a token whose output row then is another's,
or the mean of all, is as likely as that for ever. Where it ends an answer, no answer ends.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from m3.checkpoints.base import read_json
from m3.checkpoints.new_embeddings import EMBEDDING, OUTPUT
from m3.checkpoints.weights import INDEX, SINGLE, Weights
from m3.data.sample import Sample, SampleSource, Turn
from m3.data.tokenized import tokenize_sample
from m3.model import M3Config, M3ForConditionalGeneration
from m3.processing import M3Processor
from m3.training.recipe import Recipe

SAMPLES = 500
"""Of each source, spread over it: as many are tokenised to see what its answers hold."""
HELD = 2**26
"""Bytes of pictures within records (frames of videos) that are read for it."""
NEAR = 0.02
"""Of the median distance between a row and the mean of all: what is nearer counts as the mean
itself.
"""


@dataclass(frozen=True)
class NewRows:
    """Rows `ids` of the embedding and of the output layer, and their learning rate."""

    ids: tuple[int, ...]
    rate: float


def new_rows(recipe: Recipe, config: M3Config, unsayable: Iterable[int] = ()) -> NewRows | None:
    """The rows that train although their tables are frozen: of the model's new tokens, and of those
    that are `unsayable`.

    Their rate is `parts.new_tokens`, or else the first that there is of the decoder, the connector,
    the tower and the router.

    Raises:
        ValueError: a rate for new tokens where there are none.
    """
    parts, ids = recipe.parts, tuple(sorted({*(config.new_token_ids or ()), *unsayable}))
    if parts.new_tokens not in (None, "frozen") and not ids:
        raise ValueError("parts.new_tokens: the model has no new tokens; leave it out")
    if recipe.trains_tables or parts.new_tokens == "frozen" or not ids:
        return None
    rates = (parts.new_tokens, parts.decoder, parts.connector, parts.vision_tower, parts.router)
    # Parts has one
    return NewRows(
        ids, next(float(rate) for rate in rates if rate is not None and rate != "frozen")
    )


def train_rows(model: M3ForConditionalGeneration, rows: NewRows) -> dict[str, float]:
    """Lets these rows of the frozen tables train, and no other; returns the rate of each table, by
    name.

    The tables get gradients that are zero in every other row, which AdamW without weight decay then
    leaves as it is.
    """
    names = [
        name for name, _ in model.named_parameters() if name in (EMBEDDING, OUTPUT)
    ]  # one of them where they are tied
    for name in names:
        table = model.get_parameter(name).requires_grad_(True)
        table.register_hook(partial(_only_rows, ids=list(rows.ids)))
    return dict.fromkeys(names, rows.rate)


def _only_rows(gradient: Tensor, ids: list[int]) -> Tensor:
    kept = torch.zeros_like(gradient)
    kept[ids] = gradient[ids]
    return kept


def template_tokens(processor: M3Processor) -> set[int]:
    """Tokens that the chat template puts into every answer, such as the end of a turn; none of
    one that marks no answers.
    """
    found: list[set[int]] = []
    for text in "ab":  # what both have is no text of theirs, unless the tokenizer knows neither
        sample = Sample("probe", (), (Turn("user", "a"), Turn("assistant", text)))
        try:
            answer = tokenize_sample(sample, processor)
        except ValueError:
            return set()  # told where a conversation is read
        found.append({*_learned(answer.input_ids, answer.labels_mask)})
    return (found[0] & found[1]) - {*processor.tokenizer("a", add_special_tokens=False).input_ids}


def label_tokens(source: SampleSource, processor: M3Processor) -> set[int]:
    """Tokens that the answers of a source hold, seen on `SAMPLES` of its samples; broken ones
    are passed over.
    """
    found: set[int] = set()
    held = 0
    for number in range(0, len(source), -(-len(source) // SAMPLES)):
        if held > HELD:
            break
        try:
            sample = source[number]
            held += sum(len(image) for image in sample.images if isinstance(image, bytes))
            tokenized = tokenize_sample(sample, processor)
        except ValueError:
            continue  # told where it is read
        found |= {*_learned(tokenized.input_ids, tokenized.labels_mask)}
    return found


def _learned(ids: Sequence[int], mask: Sequence[bool]) -> list[int]:
    return [token for token, is_learned in zip(ids, mask, strict=True) if is_learned]


def unsayable_tokens(
    recipe: Recipe, processor: M3Processor, sources: Sequence[SampleSource] = ()
) -> dict[int, str]:
    """Tokens of the template and of the sources' answers whose row of the output layer is not their
    own: what it equals.

    None where the layer trains whole, or where no weights are at `recipe.model` (yet).
    """
    folder = None if recipe.model is None else Path(recipe.model)
    if (
        recipe.trains_tables
        or folder is None
        or not any((folder / name).is_file() for name in (SINGLE, INDEX))
    ):
        return {}
    tokens = template_tokens(processor).union(
        *(label_tokens(source, processor) for source in sources)
    )
    with Weights(folder) as weights:
        # tied ones are stored once
        table = weights.read(OUTPUT if OUTPUT in weights.meta else EMBEDDING)
    return alike_rows(table, tokens)


def alike_rows(table: Tensor, ids: Iterable[int]) -> dict[int, str]:
    """Those of `ids` whose row of the table is another's, the mean of all, or zero; with the
    words for it.
    """
    mean = table.mean(0, dtype=torch.float32)
    far = torch.cat([(chunk.float() - mean).norm(dim=1) for chunk in table.split(8192)])
    near = NEAR * far.median() + torch.finfo(table.dtype).eps * mean.norm()
    digests = [
        hashlib.blake2b(row, digest_size=16).digest() for row in table.view(torch.uint8).numpy()
    ]
    rows = Counter(digests)
    found: dict[int, str] = {}
    for token in sorted({token for token in ids if token < len(table)}):
        if not table[token].any():
            found[token] = "zero"
        elif far[token] <= near:
            found[token] = "the mean of all rows"
        elif rows[digests[token]] > 1:
            other = next(
                n for n, digest in enumerate(digests) if digest == digests[token] and n != token
            )
            found[token] = f"the row of token {other}"
    return found


def warning(
    unsayable: Mapping[int, str], processor: M3Processor, rows: NewRows | None
) -> str | None:
    """What is wrong with tokens that stay unsayable in this run, and what to do; None where
    there are none.
    """
    trained = () if rows is None else rows.ids
    stuck = {token: what for token, what in unsayable.items() if token not in trained}
    if not stuck:
        return None
    names = processor.tokenizer.convert_ids_to_tokens
    listed = ", ".join(
        f"{names(token)} (id {token}: {what})" for token, what in list(stuck.items())[:8]
    )
    ends = (
        ", so that its answers would never end" if stuck.keys() & template_tokens(processor) else ""
    )
    return (
        f"answers hold {len(stuck)} of the tokens whose row of the output layer is frozen and not "
        f"their own: {listed}. The model "
        f"cannot learn to say them{ends}. Give parts.new_tokens a learning rate, or train the "
        "decoder without an adapter"
    )


def endless(recipe: Recipe, config: M3Config, processor: M3Processor) -> str | None:
    """What is wrong where generation stops at nothing that answers are taught to end with; None
    where all is well.
    """
    file = None if recipe.model is None else Path(recipe.model) / "generation_config.json"
    given = (
        config.text_config.eos_token_id
        if file is None or not file.is_file()
        else read_json(file).get("eos_token_id")
    )
    stops = given if isinstance(given, list) else [given]
    learned, template = template_tokens(processor), processor.chat_template
    if (
        not isinstance(template, str)
        or "generation" not in template
        or not learned.isdisjoint(stops)
    ):
        return None
    name = processor.tokenizer.convert_ids_to_tokens
    behind = ", ".join(str(name(token)) for token in sorted(learned)) or "nothing"
    stopping = ", ".join(str(name(stop)) for stop in stops if stop is not None) or "nothing"
    return (
        f"answers would never end: by the chat template {behind} is learned behind each, and "
        f"generation stops at {stopping}. Put "
        "the end of a turn inside {% generation %} ... {% endgeneration %}, or its id into "
        "eos_token_id of generation_config.json"
    )


def describe(rows: NewRows, processor: M3Processor | None) -> str:
    """The plan's line about rows that train; by their ids where there is no processor."""
    names = ", ".join(
        str(token if processor is None else processor.tokenizer.convert_ids_to_tokens(token))
        for token in rows.ids[:8]
    )
    return f"new tokens      {len(rows.ids)} rows of the frozen tables train at {rows.rate:g} ({names})"
