"""Choices among budgets, judged: does choosing for each document beat a fixed budget, and chance?

In: a summary whose sweep has a ladder of fixed budgets, and perhaps choices (auto, auto:rule). Out:
a `ChoiceRow` for each choice of the sweep, and for those that need no answers of their own:

- `cascade`: answer at the cheapest budget of the front, go on to the next while the confidence in the
  answer is below a threshold. Every budget that was tried is paid, each resolution seen once.
- `by task`: one budget for all documents of a task, the cheapest that keeps the share.
- `random`: the best random mixture of fixed budgets, at the cost of the first choice.
- `oracle`: the cheapest of the front's budgets that is right, which no choice knows.

Thresholds of `cascade` and budgets of `by task` are found on one half of the pictures and used on the
other, both ways round, so that no document decides on itself. Operations are those up to the first
token of the answer that counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from m3.evaluation.analysis.frontier import pareto_front
from m3.evaluation.analysis.metric_kind import towards_better
from m3.evaluation.analysis.summary import Summary
from m3.evaluation.results.run_folder import CostRow
from m3.evaluation.results.samples import Samples
from m3.evaluation.statistics import (
    Difference,
    Interval,
    TaskPairs,
    chance_corrected,
    mean_difference,
)
from m3.model.budgets.choice import DEFAULT_KEEP
from m3.model.budgets.mixture import mixture_shares

GAP_DRAWS = 2000


@dataclass(frozen=True)
class ChoiceRow:
    """Scores in per cent, means over the tasks; `flops` and `tokens` of a document, in the mean.

    `token_spread`: standard deviation over documents. `above_random`: than the best random mixture of
    fixed budgets at equal operations. `gap_closed`: share of the way from that mixture to the
    oracle, both without what guessing gives; None where the chance level is not known or there is
    no way. `task_tokens`: task -> (mean, standard deviation) of the visual tokens.
    """

    name: str
    score: float
    flops: float
    tokens: float
    token_spread: float
    above_random: Difference | None = None
    gap_closed: Interval | None = None
    task_tokens: dict[str, tuple[float, float]] | None = None


class Chosen(NamedTuple):
    """What a choice made of a task's documents: score and visual tokens of each, mean operations."""

    scores: Float[np.ndarray, " n"]
    tokens: Float[np.ndarray, " n"]
    flops: float


@dataclass(frozen=True)
class TaskOutcomes:
    """Outcomes of a task's documents at all fixed budgets, columns in the order of `costs`.

    `chance`: expected score of a guess, None where it is not known.
    """

    task: str
    scores: Float[np.ndarray, "n k"]
    samples: Samples
    costs: Sequence[CostRow]
    answer_tokens: Float[np.ndarray, " k"]
    chance: float | None

    @property
    def flops(self) -> Float[np.ndarray, " k"]:
        """Operations up to the first token at each budget."""
        return np.asarray([cost.first_token_flops for cost in self.costs], dtype=np.float64)

    @property
    def is_second_half(self) -> Bool[np.ndarray, " n"]:
        """The half of the pictures that a document belongs to."""
        return np.asarray(self.samples.images) % 2 == 1

    def outcome_of(self, columns: Int[np.ndarray, " n"]) -> Chosen:
        """Outcome of a choice that costs nothing itself."""
        rows = np.arange(len(self.scores))
        return Chosen(
            self.scores[rows, columns],
            self.samples.tokens[rows, columns],
            float(self.flops[columns].mean()),
        )


def choice_rows(summary: Summary, model: str) -> list[ChoiceRow]:
    """Rows of a model, those of the sweep first; none where there is nothing to choose among, or
    documents have no scores of their own.
    """
    outcomes = task_outcomes(summary, model)
    if outcomes is None:
        return []
    swept_choices = {
        str(choice): task_choices
        for choice in summary.choices_of(model)
        if (task_choices := _swept_choice(summary, model, choice, outcomes)) is not None
    }
    front = _front(outcomes)
    oracle = [_oracle(task, front) for task in outcomes]
    rows = [
        _row(name, task_choices, outcomes, oracle, len(front))
        for name, task_choices in swept_choices.items()
    ]
    by_task, cascade = choices_by_task(outcomes), cascaded_choices(outcomes)
    rows += [_row("by task", by_task, outcomes, oracle, len(front))]
    rows += [] if cascade is None else [_row("cascade", cascade, outcomes, oracle, len(front))]
    rows += [_random_row(rows[0].flops, outcomes), _row("oracle", oracle, outcomes)]
    return rows


def task_outcomes(summary: Summary, model: str) -> list[TaskOutcomes] | None:
    """Outcomes of the tasks of the mean; None where one of them lacks some."""
    outcomes = []
    for task in summary.averaged:
        samples = summary.samples.get((model, task))
        costs = [summary.cost(model, scale, task) for scale in summary.scales]
        known_costs = [cost for cost in costs if cost is not None]
        if samples is None or samples.scales != summary.scales or len(known_costs) < 2:
            return None
        scores = towards_better(samples.scores, summary.kinds[task])
        if len(known_costs) < len(costs) or scores is None or not _is_share(scores):
            return None
        answer_tokens = [summary.answer_tokens(model, task, scale) for scale in summary.scales]
        baseline = summary.baselines.get(task)
        is_known = baseline is not None and summary.kinds[task].higher_is_better
        chance = baseline["chance"] if is_known and baseline is not None else None
        outcomes.append(
            TaskOutcomes(task, scores, samples, known_costs, np.asarray(answer_tokens), chance)
        )
    return outcomes or None


def _is_share(scores: Float[np.ndarray, "n k"]) -> bool:
    return bool(((scores >= 0) & (scores <= 1)).all())


def _swept_choice(
    summary: Summary, model: str, choice: int | str, outcomes: Sequence[TaskOutcomes]
) -> list[Chosen] | None:
    """What a choice of the sweep scored; its operations have the router's and every look in them."""
    task_rows = []
    for task in outcomes:
        samples = summary.choice_samples(model, task.task, choice)
        cost = summary.cost(model, choice, task.task)
        if samples is None or cost is None or samples.doc_ids != task.samples.doc_ids:
            return None
        scores = towards_better(samples.scores, summary.kinds[task.task])
        assert scores is not None  # as of the fixed budgets
        task_rows.append(Chosen(scores[:, 0], samples.tokens[:, 0], float(cost.first_token_flops)))
    return task_rows


def _mean_flops(outcomes: Sequence[TaskOutcomes]) -> Float[np.ndarray, " k"]:
    return np.mean([task.flops for task in outcomes], axis=0)


def _mean_scores(
    outcomes: Sequence[TaskOutcomes], halves: Sequence[Bool[np.ndarray, " n"]] | None = None
) -> Float[np.ndarray, " k"]:
    """Mean over tasks of the score at each fixed budget, of all documents or of some."""
    half_sets = [np.ones(len(t.scores), dtype=bool) for t in outcomes] if halves is None else halves
    return np.mean(
        [
            task.scores[half_rows].mean(0)
            for task, half_rows in zip(outcomes, half_sets, strict=True)
        ],
        axis=0,
    )


def _front(
    outcomes: Sequence[TaskOutcomes], halves: Sequence[Bool[np.ndarray, " n"]] | None = None
) -> list[int]:
    """Columns of the budgets that no other beats, cheapest first."""
    points = zip(_mean_flops(outcomes), _mean_scores(outcomes, halves), strict=True)
    return pareto_front([(float(flops), float(score)) for flops, score in points])


def _row(
    name: str,
    task_choices: Sequence[Chosen],
    outcomes: Sequence[TaskOutcomes],
    oracle: Sequence[Chosen] | None = None,
    guesses: int = 1,
) -> ChoiceRow:
    """A row; compared with the random mixture and, where it is given, with the oracle of the best of
    `guesses` answers.
    """
    flops = float(np.mean([task.flops for task in task_choices]))
    tokens = np.concatenate([task.tokens for task in task_choices])
    above, gap = None, None
    if oracle is not None:
        mixture_scores = _random_scores(flops, outcomes)
        pairs = [
            TaskPairs((100 * row.scores).tolist(), (100 * mixture).tolist(), task.samples.images)
            for row, mixture, task in zip(task_choices, mixture_scores, outcomes, strict=True)
        ]
        above = mean_difference(pairs)
        gap = _gap_closed(task_choices, mixture_scores, oracle, outcomes, guesses)
    return ChoiceRow(
        name,
        100 * float(np.mean([task.scores.mean() for task in task_choices])),
        flops,
        float(np.mean([task.tokens.mean() for task in task_choices])),
        float(tokens.std()),
        above,
        gap,
        {
            task.task: (float(row.tokens.mean()), float(row.tokens.std()))
            for row, task in zip(task_choices, outcomes, strict=True)
        },
    )


def _random_scores(flops: float, outcomes: Sequence[TaskOutcomes]) -> list[Float[np.ndarray, " n"]]:
    """Expected score of each document in the best random mixture at so many operations."""
    costs, scores = _mean_flops(outcomes).tolist(), _mean_scores(outcomes).tolist()
    shares = np.asarray(mixture_shares(flops, costs, scores))
    return [task.scores @ shares for task in outcomes]


def _random_row(flops: float, outcomes: Sequence[TaskOutcomes]) -> ChoiceRow:
    costs, scores = _mean_flops(outcomes).tolist(), _mean_scores(outcomes).tolist()
    shares = np.asarray(mixture_shares(flops, costs, scores))
    task_choices = [
        Chosen(task.scores @ shares, task.samples.tokens @ shares, float(task.flops @ shares))
        for task in outcomes
    ]
    return _row("random", task_choices, outcomes)


def _oracle(task: TaskOutcomes, front: Sequence[int]) -> Chosen:
    """The cheapest budget of the front with each document's best score; the dearest one where that
    is 0.
    """
    columns = np.asarray(front)
    scores = task.scores[:, columns]
    best = scores.max(1, keepdims=True)
    places = np.where(best[:, 0] > 0, (scores >= best).argmax(1), len(columns) - 1)
    return task.outcome_of(columns[places])


def _gap_closed(
    task_choices: Sequence[Chosen],
    mixture_scores: Sequence[Float[np.ndarray, " n"]],
    oracle: Sequence[Chosen],
    outcomes: Sequence[TaskOutcomes],
    guesses: int,
) -> Interval | None:
    """Share of the way from the mixture to the oracle, both without what guesses give together;
    pictures are drawn with replacement within each task.
    """
    chances = [task.chance for task in outcomes]
    if any(chance is None or not 0 <= chance < 1 for chance in chances):
        return None
    rng = np.random.default_rng(0)
    ways, gains = np.zeros(1 + GAP_DRAWS), np.zeros(1 + GAP_DRAWS)
    for row, mixture, best, task in zip(
        task_choices, mixture_scores, oracle, outcomes, strict=True
    ):
        chance = task.chance or 0.0
        floor = 1 - (1 - chance) ** guesses
        clusters = np.unique(np.asarray(task.samples.images), return_inverse=True)[1]
        number = clusters.max() + 1
        draws = rng.multinomial(number, np.full(number, 1 / number), size=GAP_DRAWS)
        weights = np.vstack([np.ones(number), draws])[:, clusters].astype(np.float64)
        weights /= weights.sum(1, keepdims=True)
        random = chance_corrected_of(weights @ mixture, chance)
        gains += chance_corrected_of(weights @ row.scores, chance) - random
        ways += chance_corrected_of(weights @ best.scores, floor) - random
    if ways[0] <= 0:
        return None
    drawn = np.where(ways[1:] > 0, gains[1:] / np.where(ways[1:] > 0, ways[1:], 1.0), np.inf)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(gains[0] / ways[0]), float(low), float(high))


def chance_corrected_of(scores: Float[np.ndarray, " d"], chance: float) -> Float[np.ndarray, " d"]:
    """`chance_corrected` of many scores."""
    zero, one = chance_corrected(0.0, chance), chance_corrected(1.0, chance)
    return zero + (one - zero) * scores


def choices_by_task(outcomes: Sequence[TaskOutcomes]) -> list[Chosen]:
    """One budget for a task: the cheapest that keeps the share on the other half of the pictures."""
    task_rows = []
    for task in outcomes:
        columns = np.zeros(len(task.scores), dtype=np.int64)
        for half in (False, True):
            is_used = task.is_second_half == half
            other_halves = task.scores[~is_used] if (~is_used).any() else task.scores
            means = other_halves.mean(0)
            enough = np.where(means >= DEFAULT_KEEP * means[-1])[0]
            columns[is_used] = enough[task.flops[enough].argmin()]
        task_rows.append(task.outcome_of(columns))
    return task_rows


def cascaded_choices(outcomes: Sequence[TaskOutcomes]) -> list[Chosen] | None:
    """Thresholds of the confidence from the other half; None where an answer has no confidence."""
    if any(np.isnan(task.samples.confidences).any() for task in outcomes):
        return None
    scores = [np.zeros(len(task.scores)) for task in outcomes]
    tokens = [np.zeros(len(task.scores)) for task in outcomes]
    flops = [0.0 for _ in outcomes]
    for half in (False, True):
        own_halves = [task.is_second_half == half for task in outcomes]
        other_halves = [~half_rows for half_rows in own_halves]
        if not all(half_rows.any() for half_rows in [*own_halves, *other_halves]):
            return None
        front = _front(outcomes, other_halves)
        threshold = _confidence_threshold(outcomes, front, other_halves)
        for place, (task, half_rows) in enumerate(zip(outcomes, own_halves, strict=True)):
            task_choices = _escalate(task, front, threshold, half_rows)
            scores[place][half_rows], tokens[place][half_rows] = (
                task_choices.scores,
                task_choices.tokens,
            )
            flops[place] += task_choices.flops * half_rows.mean()
    return [Chosen(*columns) for columns in zip(scores, tokens, flops, strict=True)]


def _confidence_threshold(
    outcomes: Sequence[TaskOutcomes],
    front: Sequence[int],
    half_sets: Sequence[Bool[np.ndarray, " n"]],
) -> float:
    """The least confidence to stop at that keeps the share of the largest budget's score."""
    least_score = DEFAULT_KEEP * _mean_scores(outcomes, half_sets)[-1]
    confidences = np.concatenate([t.samples.confidences[:, front].ravel() for t in outcomes])
    for step in [0.0, *np.quantile(confidences, np.linspace(0, 1, 100)).tolist()]:
        mean_scores = [
            _escalate(task, front, step, half_rows).scores.mean()
            for task, half_rows in zip(outcomes, half_sets, strict=True)
        ]
        if np.mean(mean_scores) >= least_score:
            return step
    return float("inf")


def _escalate(
    task: TaskOutcomes, front: Sequence[int], threshold: float, half_rows: Bool[np.ndarray, " n"]
) -> Chosen:
    """The first budget of the front whose answer is as sure as the threshold, else the last; the
    documents of `half_rows`.
    """
    columns = np.asarray(front)
    is_sure = task.samples.confidences[half_rows][:, columns] >= threshold
    is_sure[:, -1] = True
    places = is_sure.argmax(1)
    rows = np.arange(len(places))
    spent = np.asarray([_tried_flops(task, front[: place + 1]) for place in range(len(front))])
    return Chosen(
        task.scores[half_rows][rows, columns[places]],
        task.samples.tokens[half_rows][rows, columns[places]],
        float(spent[places].mean()),
    )


def _tried_flops(task: TaskOutcomes, columns: Sequence[int]) -> float:
    """Operations of budgets that were tried in turn, up to the first token of the last answer."""
    looks = {str(task.costs[n].scale).partition("@")[2]: task.costs[n] for n in columns}
    flops = sum(cost.vision_flops + cost.connector_flops for cost in looks.values())
    flops += sum(task.costs[n].prefill_flops for n in columns)
    answers = [task.answer_tokens[n] * task.costs[n].token_flops for n in columns[:-1]]
    return float(flops + sum(answers))
