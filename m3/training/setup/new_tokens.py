"""Tokens that no pre-training has seen: which rows of the decoder's tables train where the tables
themselves are frozen.

in: a resolved recipe, the tokens that answers hold; out: the rows to train and
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
from m3.model import M3ForConditionalGeneration
from m3.processing import M3Processor
from m3.training.recipe.recipe import Recipe
from m3.training.setup.resolved import ResolvedRun

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


def new_rows(resolved: ResolvedRun, unsayable: Iterable[int] = ()) -> NewRows | None:
    """The rows that train although their tables are frozen: of the model's new tokens, and of those
    that are `unsayable`.

    Their rate is `parts.new_tokens`, or else the first that there is of the decoder, the connector,
    the tower and the router.

    Raises:
        ValueError: a rate for new tokens where there are none.
    """
    recipe, part_rates = resolved.recipe, resolved.recipe.parts
    ids = tuple(sorted({*(resolved.config.new_token_ids or ()), *unsayable}))
    if part_rates.new_tokens not in (None, "frozen") and not ids:
        raise ValueError("parts.new_tokens: the model has no new tokens; leave it out")
    if recipe.trains_tables or part_rates.new_tokens == "frozen" or not ids:
        return None
    rates = (
        part_rates.new_tokens,
        part_rates.decoder,
        part_rates.connector,
        part_rates.vision_tower,
        part_rates.router,
    )
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
    table_names = [
        parameter_name
        for parameter_name, _ in model.named_parameters()
        if parameter_name in (EMBEDDING, OUTPUT)
    ]  # one of them where they are tied
    for parameter_name in table_names:
        table = model.get_parameter(parameter_name).requires_grad_(True)
        table.register_hook(partial(_only_rows, ids=list(rows.ids)))
    return dict.fromkeys(table_names, rows.rate)


def _only_rows(gradient: Tensor, ids: list[int]) -> Tensor:
    kept_gradient = torch.zeros_like(gradient)
    kept_gradient[ids] = gradient[ids]
    return kept_gradient


def template_tokens(processor: M3Processor) -> set[int]:
    """Tokens that the chat template puts into every answer, such as the end of a turn; none of
    one that marks no answers.
    """
    token_sets: list[set[int]] = []
    for (
        sample_text
    ) in "ab":  # what both have is no text of theirs, unless the tokenizer knows neither
        sample = Sample("probe", (), (Turn("user", "a"), Turn("assistant", sample_text)))
        try:
            answer = tokenize_sample(sample, processor)
        except ValueError:
            return set()  # told where a conversation is read
        token_sets.append({*_learned(answer.input_ids, answer.labels_mask)})
    return (token_sets[0] & token_sets[1]) - {
        *processor.tokenizer("a", add_special_tokens=False).input_ids
    }


def label_tokens(source: SampleSource, processor: M3Processor) -> set[int]:
    """Tokens that the answers of a source hold, seen on `SAMPLES` of its samples; broken ones
    are passed over.
    """
    label_ids: set[int] = set()
    sample_count = 0
    for sample_index in range(0, len(source), -(-len(source) // SAMPLES)):
        if sample_count > HELD:
            break
        try:
            sample = source[sample_index]
            sample_count += sum(len(image) for image in sample.images if isinstance(image, bytes))
            tokenized = tokenize_sample(sample, processor)
        except ValueError:
            continue  # told where it is read
        label_ids |= {*_learned(tokenized.input_ids, tokenized.labels_mask)}
    return label_ids


def _learned(ids: Sequence[int], mask: Sequence[bool]) -> list[int]:
    return [token for token, is_learned in zip(ids, mask, strict=True) if is_learned]


def unsayable_tokens(
    recipe: Recipe, processor: M3Processor, sources: Sequence[SampleSource] = ()
) -> dict[int, str]:
    """Tokens of the template and of the sources' answers whose row of the output layer is not their
    own: what it equals.

    None where the layer trains whole, or where no weights are at `recipe.model` (yet).
    """
    model_folder = None if recipe.model is None else Path(recipe.model)
    if (
        recipe.trains_tables
        or model_folder is None
        or not any((model_folder / weights_name).is_file() for weights_name in (SINGLE, INDEX))
    ):
        return {}
    tokens = template_tokens(processor).union(
        *(label_tokens(sample_source, processor) for sample_source in sources)
    )
    with Weights(model_folder) as weights:
        # tied ones are stored once
        table = weights.read(OUTPUT if OUTPUT in weights.meta else EMBEDDING)
    return alike_rows(table, tokens)


def alike_rows(table: Tensor, ids: Iterable[int]) -> dict[int, str]:
    """Those of `ids` whose row of the table is another's, the mean of all, or zero; with the
    words for it.
    """
    mean_row = table.mean(0, dtype=torch.float32)
    far = torch.cat([(chunk.float() - mean_row).norm(dim=1) for chunk in table.split(8192)])
    near = NEAR * far.median() + torch.finfo(table.dtype).eps * mean_row.norm()
    digests = [
        hashlib.blake2b(row_bytes, digest_size=16).digest()
        for row_bytes in table.view(torch.uint8).numpy()
    ]
    digest_counts = Counter(digests)
    alike_texts: dict[int, str] = {}
    for token in sorted({token for token in ids if token < len(table)}):
        if not table[token].any():
            alike_texts[token] = "zero"
        elif far[token] <= near:
            alike_texts[token] = "the mean of all rows"
        elif digest_counts[digests[token]] > 1:
            other_row = next(
                n for n, digest in enumerate(digests) if digest == digests[token] and n != token
            )
            alike_texts[token] = f"the row of token {other_row}"
    return alike_texts


def warning(
    unsayable: Mapping[int, str], processor: M3Processor, rows: NewRows | None
) -> str | None:
    """A warning of tokens that stay unsayable in this run, with what to do; None where there are
    none.
    """
    trained = () if rows is None else rows.ids
    stuck = {token: row_reason for token, row_reason in unsayable.items() if token not in trained}
    if not stuck:
        return None
    token_names = processor.tokenizer.convert_ids_to_tokens
    listed = ", ".join(
        f"{token_names(token)} (id {token}: {row_reason})"
        for token, row_reason in list(stuck.items())[:8]
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


def endless(resolved: ResolvedRun, processor: M3Processor) -> str | None:
    """A warning where generation stops at nothing that answers are taught to end with; None where
    all is well.
    """
    model = resolved.recipe.model
    generation_file = None if model is None else Path(model) / "generation_config.json"
    generation_settings = (
        resolved.config.text_config.eos_token_id
        if generation_file is None or not generation_file.is_file()
        else read_json(generation_file).get("eos_token_id")
    )
    stops = generation_settings if isinstance(generation_settings, list) else [generation_settings]
    learned, template = template_tokens(processor), processor.chat_template
    if (
        not isinstance(template, str)
        or "generation" not in template
        or not learned.isdisjoint(stops)
    ):
        return None
    token_name = processor.tokenizer.convert_ids_to_tokens
    learned_names = ", ".join(str(token_name(token)) for token in sorted(learned)) or "nothing"
    stopping = ", ".join(str(token_name(stop)) for stop in stops if stop is not None) or "nothing"
    return (
        f"answers would never end: by the chat template {learned_names} is learned behind each, and "
        f"generation stops at {stopping}. Put "
        "the end of a turn inside {% generation %} ... {% endgeneration %}, or its id into "
        "eos_token_id of generation_config.json"
    )


def describe(rows: NewRows, processor: M3Processor | None) -> str:
    """The plan's line about rows that train; by their ids where there is no processor."""
    token_names = ", ".join(
        str(token if processor is None else processor.tokenizer.convert_ids_to_tokens(token))
        for token in rows.ids[:8]
    )
    return f"new tokens      {len(rows.ids)} rows of the frozen tables train at {rows.rate:g} ({token_names})"
