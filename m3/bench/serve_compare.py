"""All questions at one scale against all at another, on one server, in turn: what a scale saves, as
ratios of two things measured in one run.

In: a running server, the same questions at the two scales with their expected answers. Out: a printed
table. Every picture is new in every round, so that the tower sees it: for `auto` that is the cheapest
view, and the chosen one where it is another.
"""

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import httpx2

from m3.bench.serve_load import PATIENCE_SECONDS, Question, RequestResult, ask_server, renew_picture
from m3.bench.serve_process import Server


@dataclass(frozen=True)
class Round:
    """All questions once, at one scale. `cpu_seconds`: of the server; `pictures`: by the scale they
    were read at.
    """

    results: Sequence[RequestResult] = field(repr=False)
    seconds: float
    cpu_seconds: float
    pictures: Counter[str]

    def percentile(self, percent: int) -> float:
        """Seconds of a request."""
        durations = [result.seconds for result in self.results]
        if len(durations) < 2:
            return durations[0]
        return statistics.quantiles(durations, n=100, method="inclusive")[percent - 1]


FIGURES: dict[str, Callable[[Round], float]] = {
    "seconds of a request, p50": lambda load_round: load_round.percentile(50),
    "seconds of a request, p90": lambda load_round: load_round.percentile(90),
    "requests a second": lambda load_round: len(load_round.results) / load_round.seconds,
    "wall seconds of a round": lambda load_round: load_round.seconds,
    "server's CPU seconds of a round": lambda load_round: load_round.cpu_seconds,
}


def report_comparison(
    server: Server,
    pair: tuple[Sequence[Question], Sequence[Question]],
    client_count: int,
    round_count: int,
) -> bool:
    """Print medians of the rounds and the ratio of each pair of rounds; true if all answers are those
    without a server.
    """
    rounds: tuple[list[Round], list[Round]] = ([], [])
    for round_number in range(round_count + 1):
        for questions, scale_rounds in zip(pair, rounds, strict=True):
            measured_round = asyncio.run(run_round(server, questions, client_count))
            if round_number:  # the first warms up
                scale_rounds.append(measured_round)
    names = [str(questions[0].scale) for questions in pair]
    print(
        f"\nall at {names[0]} against all at {names[1]}: {len(pair[0])} questions a round, "
        f"{round_count} rounds in turn, every picture new"
    )
    print(f"{'':32}{names[0]:>10}{names[1]:>10}   ratio  (least, most)")
    for title, figure in FIGURES.items():
        print(f"{title:32}{_figure_cells(figure, rounds)}")
    for name, scale_rounds in zip(names, rounds, strict=True):
        pictures = sum((load_round.pictures for load_round in scale_rounds), Counter[str]())
        cells = ", ".join(f"{count} at {scale}" for scale, count in pictures.most_common())
        print(f"pictures of all rounds, {name}: {cells}")
    results = [
        result
        for scale_rounds in rounds
        for load_round in scale_rounds
        for result in load_round.results
    ]
    error_count = sum(bool(result.error) for result in results)
    wrong_count = sum(not result.is_right for result in results if not result.error)
    print(f"{error_count} errors, {wrong_count} answers that differ")
    return not error_count and not wrong_count


async def run_round(server: Server, questions: Sequence[Question], client_count: int) -> Round:
    """Ask all questions about pictures that the server has not seen, so many at a time."""
    new_questions = [replace(asked, image=renew_picture(asked.image)) for asked in questions]
    free_clients = asyncio.Semaphore(client_count)
    limits = httpx2.Limits(max_connections=client_count)
    async with httpx2.AsyncClient(
        base_url=server.address, timeout=PATIENCE_SECONDS, limits=limits
    ) as http_client:

        async def ask_in_turn(question: Question) -> RequestResult:
            async with free_clients:
                return await ask_server(http_client, server.name, question, is_stream=False)

        pictures_before = await asyncio.to_thread(server.pictures)
        start_time, cpu_start = time.perf_counter(), server.cpu_seconds()
        results = await asyncio.gather(*map(ask_in_turn, new_questions))
        seconds, cpu_seconds = time.perf_counter() - start_time, server.cpu_seconds() - cpu_start
        pictures = await asyncio.to_thread(server.pictures)
    return Round(results, seconds, cpu_seconds, pictures - pictures_before)


def _figure_cells(
    figure: Callable[[Round], float], rounds: tuple[Sequence[Round], Sequence[Round]]
) -> str:
    values = [[figure(load_round) for load_round in scale_rounds] for scale_rounds in rounds]
    medians = [statistics.median(scale_values) for scale_values in values]
    ratios = [first / second for first, second in zip(*values, strict=True)]
    cells = "".join(f"{median:10.3f}" for median in medians)
    return f"{cells}{medians[0] / medians[1]:8.2f}  ({min(ratios):.2f}, {max(ratios):.2f})"
