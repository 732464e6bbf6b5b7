"""A micro-batch: every sequence whole, every image once, every placeholder accounted for, M3's
average as weights.
"""

import itertools
import logging
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from m3.data.collate import Collator
from m3.data.mixture import Broken, Mixture, Positioned
from m3.data.multiscale import draw_budgets, expand
from m3.data.sample import Document, Sample, Turn
from m3.data.tokenized import tokenize_sample
from m3.nesting import Tiles, read_ladder
from m3.processing import M3Processor

MakeSample = Callable[..., Sample]
TRAINED = (1, 4, 9, 36, 144)


def sequences_of(
    batch: dict[str, Tensor], pad_id: int
) -> list[tuple[list[int], list[int], list[float]]]:
    """Cut the rows where positions restart; padding left out.

    (ids, labels, weights) of each sequence, row by row.
    """
    found: list[tuple[list[int], list[int], list[float]]] = []
    for row in range(batch["input_ids"].shape[0]):
        positions = batch["position_ids"][row]
        starts = [*(positions == 0).nonzero().flatten().tolist(), len(positions)]
        for start, end in itertools.pairwise(starts):
            assert positions[start:end].tolist() == list(range(end - start))
            ids, labels, weights = (
                batch[name][row, start:end].tolist()
                for name in ("input_ids", "labels", "loss_weights")
            )
            if set(ids) == {pad_id}:
                assert set(labels) == {-100}
                assert set(weights) == {0.0}
            else:
                found.append((ids, labels, weights))
    return found


def mixed_samples(make_sample: MakeSample) -> list[Sample]:
    return [
        make_sample("one", (10,), ("red", "blue sky")),
        make_sample("text"),
        make_sample("two", (20, 30), ("green",)),
        make_sample("long", (40,), ("a b c d e f g", "h", "i j")),
    ]


@pytest.mark.parametrize("pack_length", [None, 420, 2000])
def test_nothing_is_lost_and_nothing_is_cut(
    pack_length: int | None, processor: M3Processor, make_sample: MakeSample
) -> None:
    samples = mixed_samples(make_sample)
    batch = Collator(processor, pack_length=pack_length)(samples)
    expected = [
        sequence
        for sample in samples
        for sequence in expand(
            tokenize_sample(sample, processor),
            read_ladder(TRAINED),
            processor,
            {None: [Tiles()] * len(sample.images)},
        )
    ]
    found = sequences_of(batch, processor.tokenizer.pad_token_id)
    assert sorted(ids for ids, _, _ in found) == sorted(s.input_ids.tolist() for s in expected)
    by_ids = {tuple(s.input_ids.tolist()): s for s in expected}
    for ids, labels, weights in found:
        sequence = by_ids[tuple(ids)]
        assert labels == sequence.labels.tolist()
        assert weights == pytest.approx(
            [0.0 if label == -100 else sequence.weight for label in labels]
        )
    rows, length = batch["input_ids"].shape
    assert length % 8 == 0
    assert ("attention_mask" in batch) == (pack_length is None)
    if pack_length is None:
        assert rows == len(expected)
        assert (batch["attention_mask"].sum(dim=1).tolist()) == [len(s.input_ids) for s in expected]
        assert (
            (batch["attention_mask"] == 0)
            == (batch["input_ids"] == processor.tokenizer.pad_token_id)
        ).all()
    else:
        assert length <= -(-pack_length // 8) * 8
        assert rows < len(expected)


@pytest.mark.parametrize("pack_length", [None, 500])
@pytest.mark.parametrize(
    ("kind", "scales"), [("grid_pool", TRAINED), ("grid_pool", (144,)), ("query_prefix", (3, 50))]
)
def test_spans_scales_and_images_agree(
    kind: str,
    scales: tuple[int, ...],
    pack_length: int | None,
    make_processor: Callable[..., M3Processor],
    make_sample: MakeSample,
) -> None:
    """In reading order, span k has image_scales[k] placeholders and shows
    pixel_values[image_index[k]].
    """
    processor = make_processor(nesting={"kind": kind, "trained_scales": list(scales)})
    samples = mixed_samples(make_sample)
    batch = Collator(processor, pack_length=pack_length)(samples)
    shades = ((batch["pixel_values"][:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
    assert shades == [10, 20, 30, 40]  # each image once
    shown: list[tuple[int, int]] = []
    for ids, _, _ in sequences_of(batch, processor.tokenizer.pad_token_id):
        text = processor.tokenizer.decode([t for t in ids if t != processor.image_token_id])
        sample = next(s for s in samples if f"at {s.id} " in text)
        runs = [len(run.split()) for run in _runs(ids, processor.image_token_id)]
        shown += [(run, shade) for run, shade in zip(runs, _shades(sample), strict=True)]
    stated = zip(
        batch["image_scales"].tolist(),
        (shades[i] for i in batch["image_index"].tolist()),
        strict=True,
    )
    assert list(stated) == shown
    assert len(shown) == 4 * len(scales)


def _runs(ids: list[int], image_token_id: int) -> list[str]:
    return [
        run for run in "".join("x " if t == image_token_id else "|" for t in ids).split("|") if run
    ]


def _shades(sample: Sample) -> list[int]:
    return {"one": [10], "text": [], "two": [20, 30], "long": [40]}[sample.id]


@pytest.mark.parametrize("pack_length", [None, 600])
def test_the_weighted_mean_is_m3s_average(
    pack_length: int | None, processor: M3Processor, make_sample: MakeSample
) -> None:
    """M3: mean over scales of each sample's token losses.

    Here: one weighted mean over all tokens of the batch.
    """
    samples = mixed_samples(make_sample)
    batch = Collator(processor, pack_length=pack_length)(samples)
    # A made-up loss that depends on the token and on how many placeholders its sequence has.
    total = 0.0
    for ids, labels, weights in sequences_of(batch, processor.tokenizer.pad_token_id):
        placeholders = ids.count(processor.image_token_id)
        total += sum(
            w * np.sin(label + 7 * placeholders)
            for label, w in zip(labels, weights, strict=True)
            if label != -100
        )
    mean = total / float(batch["loss_weights"].sum())

    losses, tokens = 0.0, 0
    for sample in samples:
        tokenized = tokenize_sample(sample, processor)
        answers = [
            t for t, kept in zip(tokenized.input_ids, tokenized.labels_mask, strict=True) if kept
        ]
        tokens += len(answers)
        per_scale = [
            sum(np.sin(t + 7 * scale * len(sample.images)) for t in answers) for scale in TRAINED
        ]
        losses += float(np.mean(per_scale))
    assert mean == pytest.approx(losses / tokens, rel=1e-6)
    assert float(batch["loss_weights"].sum()) == pytest.approx(tokens)


def test_text_only_batch_has_no_image_entries(
    processor: M3Processor, make_sample: MakeSample
) -> None:
    batch = Collator(processor, pack_length=100)([make_sample("a"), make_sample("b")])
    assert sorted(batch) == [
        "input_ids",
        "labels",
        "loss_weights",
        "position_ids",
        "sequence_lengths",
    ]


def test_an_image_two_samples_share_is_seen_once(
    processor: M3Processor, make_sample: MakeSample
) -> None:
    batch = Collator(processor, pack_length=1000)(
        [make_sample("a", (5,)), make_sample("b", (6, 5))]
    )
    assert batch["pixel_values"].shape[0] == 2
    assert sorted(batch["image_index"].tolist()) == [0] * 10 + [1] * 5


def test_dtypes(processor: M3Processor, make_sample: MakeSample) -> None:
    batch = Collator(processor)([make_sample("a", (5,))])
    floats = {"pixel_values", "loss_weights"}
    assert {name: t.dtype for name, t in batch.items()} == {
        name: torch.float32 if name in floats else torch.int64 for name in batch
    }


def test_row_image_cap(processor: M3Processor, make_sample: MakeSample) -> None:
    samples = [make_sample(f"s{n}", (n,)) for n in range(4)]
    batch = Collator(processor, scales=(1,), pack_length=400, max_images=2)(samples)
    per_row = (batch["input_ids"] == processor.image_token_id).sum(dim=1)
    assert per_row.tolist() == [2, 2]


def test_images_may_be_paths(
    processor: M3Processor, png: Callable[[int], bytes], tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(png(9))
    turns = (Turn("user", "<image>"), Turn("assistant", "x"))
    batch = Collator(processor)([Sample("p", (tmp_path / "a.png",), turns)])
    assert batch["pixel_values"].shape == (1, 3, 8, 8)
    with pytest.raises(ValueError, match=r"b\.png: no such image file"):
        Collator(processor)([Sample("p", (str(tmp_path / "b.png"),), turns)])


# ---------------------------------------------------------------------- too long
def test_too_long_is_refused_with_its_name(processor: M3Processor, make_sample: MakeSample) -> None:
    with pytest.raises(
        ValueError,
        match=r"sample 'big' has \d+ tokens at 144 tokens per image, the limit is 100. "
        r"Raise",
    ):
        Collator(processor, pack_length=100)([make_sample("big", (1,))])
    with pytest.raises(
        ValueError,
        match=r"sample 'big' has \d+ tokens, the limit is 5.*`data.too_long: drop` in "
        r"a recipe",
    ):
        Collator(processor, max_length=5)([make_sample("big")])
    with pytest.raises(ValueError, match="sample 'many' has 3 images, a row may show 2"):
        Collator(processor, pack_length=900, max_images=2)([make_sample("many", (1, 2, 3))])


def test_a_system_prompt_without_a_place_is_refused_or_skipped(
    make_processor: Callable[..., M3Processor], make_sample: MakeSample
) -> None:
    answer = "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% endif %}"
    processor = make_processor(chat_template="{% for m in messages %}" + answer + "{% endfor %}")
    good = make_sample("good")
    prompted = Sample("prompted", (), (Turn("system", "be brief"), *good.turns))
    with pytest.raises(
        ValueError,
        match="sample 'prompted': has a system prompt, and the chat template writes none",
    ):
        Collator(processor, pack_length=100)([prompted])
    batch = Collator(processor, pack_length=100, broken="skip")([prompted, good])
    assert batch["left_out"].tolist() == [1, 0]


def test_too_long_is_dropped_whole_and_counted(
    processor: M3Processor, make_sample: MakeSample, caplog: pytest.LogCaptureFixture
) -> None:
    collator = Collator(processor, pack_length=200, too_long="drop")
    with caplog.at_level(logging.WARNING, logger="m3.data.collate"):
        batch = collator([make_sample("big", (1, 2)), make_sample("fits", (3,))])
    assert batch["left_out"].tolist() == [0, 1]
    assert "dropped: sample 'big' has" in caplog.text
    assert batch["pixel_values"].shape[0] == 1  # nor are its images loaded
    assert sorted(batch["image_scales"].tolist()) == list(TRAINED)


def test_broken_samples_are_skipped_whole_and_counted(
    processor: M3Processor, make_sample: MakeSample, caplog: pytest.LogCaptureFixture
) -> None:
    """Of two images the second cannot be read: the first is not shown either."""
    torn = Sample(
        "torn", (make_sample("x", (9,)).images[0], b"no image"), make_sample("x", (1, 2)).turns
    )
    batch = [
        Positioned(0, torn),
        Positioned(1, Broken("d.json, record 3: not JSON")),
        Positioned(2, make_sample("ok", (3,))),
    ]
    with caplog.at_level(logging.WARNING, logger="m3.data.collate"):
        found = Collator(processor, pack_length=400, broken="skip")(batch)
    assert found["left_out"].tolist() == [2, 0]
    assert "skipped: sample 'torn': image of 8 bytes: not an image" in caplog.text
    assert "skipped: d.json, record 3: not JSON" in caplog.text
    alone = Collator(processor, pack_length=400)([make_sample("ok", (3,))])
    assert alone.keys() == found.keys() - {"left_out"}
    assert all(torch.equal(found[name], alone[name]) for name in alone)
    with pytest.raises(ValueError, match="image of 8 bytes: not an image"):
        Collator(processor, pack_length=400)(batch[:1])


def test_documents_and_conversations_of_all_sources_share_rows(
    processor: M3Processor, make_sample: MakeSample
) -> None:
    document = Document("d", make_sample("x", (7,)).images, ("", "the red one"))
    batch = Collator(processor, scales=(1, 4), pack_length=400)(
        [make_sample("a", (5,)), document, make_sample("t")]
    )
    assert batch["input_ids"].shape[0] == 1
    assert batch["image_index"].tolist() == [0, 0, 1, 1]
    found = sequences_of(batch, processor.tokenizer.pad_token_id)
    assert len(found) == 5
    for ids, labels, _ in found:
        assert labels[0] == -100, "nothing is predicted from the end of another sample"
        assert all(
            label == -100
            for token, label in zip(ids, labels, strict=True)
            if token == processor.image_token_id
        )


def test_a_batch_without_survivors_trains_nothing(
    processor: M3Processor, make_sample: MakeSample
) -> None:
    batch = Collator(processor, pack_length=50, too_long="drop")([make_sample("big", (1,))])
    assert batch["input_ids"].tolist() == [[processor.tokenizer.pad_token_id] * 8]
    assert batch["labels"].unique().tolist() == [-100]
    assert batch["loss_weights"].sum() == 0
    assert "pixel_values" not in batch


def test_settings_that_cannot_work(processor: M3Processor) -> None:
    with pytest.raises(ValueError, match="scales='random' needs step_samples"):
        Collator(processor, scales="random")
    with pytest.raises(ValueError, match="max_length=20 is more than a row holds"):
        Collator(processor, pack_length=10, max_length=20)
    with pytest.raises(ValueError, match="scale 7 cannot be reached"):
        Collator(processor, scales=(7,))


# ---------------------------------------------------------------------- the draw in a run
class Repeated:
    def __init__(self, sample: Sample) -> None:
        self.sample = sample

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Sample:
        return self.sample


def drawn(loader: DataLoader) -> list[tuple[int, ...]]:
    return [tuple(sorted(set(batch["image_scales"].tolist()))) for batch in loader]


@pytest.mark.parametrize("mode", ["sandwich", "random"])
@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_workers_and_resumes_draw_alike(
    mode: str, workers: int, processor: M3Processor, make_sample: MakeSample
) -> None:
    """Two ranks as accelerate shards them, any number of workers, and a run that skips its first
    three steps.
    """
    from accelerate.data_loader import BatchSamplerShard, skip_first_batches

    mixture = Mixture([Repeated(make_sample("a", (1,)))], seed=0, length=24)
    collator = Collator(processor, scales=mode, pack_length=400, seed=4, step_samples=4)
    batches = BatchSampler(SequentialSampler(mixture), 2, drop_last=False)
    loaders = [
        DataLoader(
            mixture,
            batch_sampler=BatchSamplerShard(batches, num_processes=2, process_index=rank),
            collate_fn=collator,
            num_workers=workers,
        )
        for rank in range(2)
    ]
    expected = [
        tuple(budget.tokens for budget in draw_budgets(mode, read_ladder(TRAINED), 4, step))
        for step in range(6)
    ]
    assert drawn(loaders[0]) == expected
    assert drawn(loaders[1]) == expected
    assert drawn(skip_first_batches(loaders[1], 3)) == expected[3:]
    assert len(set(expected)) > 1


def test_a_draw_needs_positions(processor: M3Processor, make_sample: MakeSample) -> None:
    collator = Collator(processor, scales="sandwich", step_samples=1)
    with pytest.raises(
        ValueError,
        match=r"needs samples that know their position; read them through "
        r"m3\.data\.mixture\.Mix",
    ):
        collator([make_sample("a", (1,))])
    assert collator([Positioned(0, make_sample("a", (1,)))])["image_scales"].numel() >= 3


def test_a_collator_can_be_sent_to_a_worker(
    processor: M3Processor, make_sample: MakeSample
) -> None:
    collator = Collator(processor, pack_length=400)
    sample = make_sample("a", (1,))
    here, there = collator([sample]), pickle.loads(pickle.dumps(collator))([sample])
    assert all(torch.equal(here[name], there[name]) for name in here)
