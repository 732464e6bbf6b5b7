"""What a finished model makes of questions at every budget: the router's training data.

in:  a model, its processor, and samples of which the first question is asked, or each;
out: `Outcomes`: the cheapest view of each image, the words of its prompt, and at each budget the
     loss of the answer and whether the model would say it. Nothing of the model changes.

An answer counts as said where every token of it, and its end, is the likeliest one given those
before it: this is when greedy decoding writes it.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from m3.data.collate import Collator
from m3.data.multiscale import IGNORED
from m3.data.sample import AnySample, Sample, Turn
from m3.model import M3ForConditionalGeneration
from m3.nesting import Budget, resolutions
from m3.processing import M3Processor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcomes:
    """`n` questions at `k` budgets, which are in the order of `budgets`.

    `losses`: summed over the tokens of the answer. `is_right`: the model would say the answer.
    """

    budgets: tuple[Budget, ...]
    view: Float[Tensor, "n v d"]
    prompts: list[list[int]]
    losses: Float[Tensor, "n k"]
    is_right: Bool[Tensor, "n k"]

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, questions: Int[Tensor, " m"]) -> "Outcomes":
        """The outcomes of some of the questions, by number."""
        return Outcomes(
            self.budgets,
            self.view[questions],
            [self.prompts[number] for number in questions.tolist()],
            self.losses[questions],
            self.is_right[questions],
        )

    def at(self, places: Sequence[int]) -> "Outcomes":
        """The outcomes at some of the budgets, by place."""
        columns = list(places)
        return replace(
            self,
            budgets=tuple(self.budgets[place] for place in columns),
            losses=self.losses[:, columns],
            is_right=self.is_right[:, columns],
        )


def questions_of(sample: AnySample, each: bool) -> Iterator[Sample]:
    """The first question with its answer, and with `each` those after it, alone with its image, up
    to one that shows an image of its own.

    None of a document, or where the first question shows no image or several.
    """
    if not isinstance(sample, Sample):
        return
    system = tuple(turn for turn in sample.turns if turn.role == "system")
    turns = sample.turns[len(system) :]
    images = sample.images[:1]
    if len(turns[0].texts) != 2:
        return
    for number, (question, answer) in enumerate(zip(turns[::2], turns[1::2], strict=True)):
        if number and (not each or len(question.texts) > 1):
            return
        if number:
            question = Turn("user", ("", f"\n{question.text}"))
        if answer.learned:
            yield Sample(sample.id, images, (*system, question, answer))


def collect_outcomes(
    model: M3ForConditionalGeneration,
    processor: M3Processor,
    question_source: Iterable[Sample],
    budgets: Sequence[Budget],
    count: int,
    batch_size: int,
) -> Outcomes:
    """Outcomes of the first `count` questions, each about one image.

    Raises:
        ValueError: fewer questions, or images that are more than one tile at the cheapest view.
    """
    questions = list(islice(question_source, count))
    if len(questions) < count:
        raise ValueError(
            f"the data has {len(questions)} questions about one image each, but the recipe asks for "
            f"{count} (samples and held_out): give more data, or ask for fewer"
        )
    model.eval()
    batch_outcomes = []
    for start in range(0, count, batch_size):
        batch = questions[start : start + batch_size]
        batch_outcomes.append(_ask(model, processor, batch, tuple(budgets)))
        if start // batch_size % 20 == 0:
            logger.info("asked %d of %d questions at every budget", start + len(batch), count)
    return Outcomes(
        tuple(budgets),
        torch.cat([batch_part.view for batch_part in batch_outcomes]),
        [prompt for batch_part in batch_outcomes for prompt in batch_part.prompts],
        torch.cat([batch_part.losses for batch_part in batch_outcomes]),
        torch.cat([batch_part.is_right for batch_part in batch_outcomes]),
    )


@torch.no_grad()
def _ask(
    model: M3ForConditionalGeneration,
    processor: M3Processor,
    questions: Sequence[Sample],
    budgets: tuple[Budget, ...],
) -> Outcomes:
    """Outcomes of a batch, each resolution in one pass."""
    losses = torch.empty(len(questions), len(budgets))
    is_right = torch.empty(len(questions), len(budgets), dtype=torch.bool)
    view, prompts = None, []
    for side in resolutions(budgets):
        alike = [place for place, budget in enumerate(budgets) if budget.resolution == side]
        collate = Collator(processor, scales=tuple(budgets[place] for place in alike))
        batch = {name: values.to(model.device) for name, values in collate(questions).items()}
        features = model.get_image_features(
            batch.pop("pixel_values"), batch.pop("pixel_mask", None)
        )
        assert features.pooler_output is not None  # get_image_features always gives it
        if view is None:  # resolutions ascend: the first is the cheapest look
            # an image of several questions is one tile; each question has a row per budget
            images = batch["image_index"][:: len(alike)]
            view = _view_of_images(features.pooler_output, int(images.max()) + 1)[images]
            prompts = _prompts(batch, len(alike), model.config.image_token_id)
        labels = batch.pop("labels")
        inputs = {name: batch[name] for name in batch if name not in ("loss_weights",)}
        logits = model(**inputs, image_features=features.pooler_output).logits
        row_losses, row_is_right = _row_outcomes(logits, labels)
        losses[:, alike] = row_losses.view(len(questions), len(alike)).cpu()
        is_right[:, alike] = row_is_right.view(len(questions), len(alike)).cpu()
    assert view is not None  # there are budgets
    return Outcomes(budgets, view.float().cpu(), prompts, losses, is_right)


def _view_of_images(tokens: Float[Tensor, "t v d"], images: int) -> Float[Tensor, "i v d"]:
    if len(tokens) != images:
        raise ValueError(
            f"{images} images are {len(tokens)} tiles at the cheapest resolution of the ladder, but "
            "the router looks at one tile each: add a budget that sees the whole image alone"
        )
    return tokens


def _prompts(batch: dict[str, Tensor], copies: int, image_token_id: int) -> list[list[int]]:
    """Ids before the answer, without placeholders; a question has `copies` rows, of which one."""
    prompts = []
    for ids, labels in zip(batch["input_ids"][::copies], batch["labels"][::copies], strict=True):
        start = int((labels != IGNORED).nonzero()[0, 0])
        prompts.append([token for token in ids[:start].tolist() if token != image_token_id])
    return prompts


def _row_outcomes(
    logits: Float[Tensor, "r l vocab"], labels: Tensor
) -> tuple[Float[Tensor, " r"], Bool[Tensor, " r"]]:
    """Loss summed over the label tokens of each row, and whether each of them is the likeliest."""
    logits, targets = logits[:, :-1].float(), labels[:, 1:]
    token_losses = cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
    ).view_as(targets)
    is_likeliest = (logits.argmax(-1) == targets) | (targets == IGNORED)
    return token_losses.sum(1), is_likeliest.all(1)
