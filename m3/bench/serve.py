"""`m3 bench serve`: a server under load on this machine's loopback, with clients at mixed scales.

1. reference answers without a server, one after the other
2. many clients for some minutes: errors, answers that differ, seconds per scale, throughput against
   1., memory over time
3. one image at all scales against as many images: time, and runs of the vision tower
4. all questions at one scale (`auto`, where the model has a router) against all at the largest: ratios
   of latency, throughput and CPU seconds
5. SIGTERM while all clients wait for an answer: number of accepted requests that were answered
"""

import argparse
import asyncio
import itertools
import random
import signal
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx2

from m3.bench.options import serve_options
from m3.bench.serve_compare import report_comparison
from m3.bench.serve_load import Question, RequestResult, ask_server, renew_picture, run_clients
from m3.bench.serve_process import Server, start_server
from m3.data.synthetic.suite import FAMILIES, test_row
from m3.inference import Conversation, Generation
from m3.inference import load as load_model
from m3.model import M3ForConditionalGeneration
from m3.nesting import read_budget, resolutions
from m3.processing import M3Processor
from m3.processing.scale_policy import Fixed, read_policy

SAMPLES = 20
"""Samples of the server's memory over the duration of the load."""


def main(argv: list[str]) -> int:
    """Print the five reports.

    1 where a request failed or was lost, an answer differs, or the tower encoded an image twice.
    """
    arguments = serve_options().parse_intermixed_args(argv)
    plan, seconds_alone = make_plan(arguments)
    print(
        f"{len(plan.load)} questions at scales {plan.scales}; alone, one after the other: "
        f"{1 / seconds_alone:.1f} a second"
    )
    with start_server(arguments.model, arguments.settings) as server:
        results, memory = asyncio.run(
            run_load(server, plan.load, arguments.clients, arguments.minutes * 60)
        )
        is_clean = report_load(results, memory, arguments.minutes * 60, seconds_alone)
        is_clean &= report_tower_runs(server, plan.load, plan.scales)
        if plan.pair is not None:
            is_clean &= report_comparison(server, plan.pair, arguments.clients, arguments.rounds)
        is_clean &= asyncio.run(report_shutdown(server, plan.load, arguments.clients))
    return 0 if is_clean else 1


# ---------------------------------------------------------------------- 1. without a server
@dataclass(frozen=True)
class Plan:
    """What is asked: under load, and, where two scales are compared, at each of them."""

    load: list[Question]
    pair: tuple[list[Question], list[Question]] | None

    @property
    def scales(self) -> list[int | str]:
        """The scales of the load, in order."""
        return list(dict.fromkeys(question.scale for question in self.load))


def make_plan(arguments: argparse.Namespace) -> tuple[Plan, float]:
    """Questions with the model's answers without a server, and median seconds per answer."""
    model, processor = load_model(arguments.model)
    scales = arguments.scales or processor.trained_scales
    compared_scale = arguments.against_largest
    if compared_scale is None and model.config.budget_choice is not None:
        compared_scale = "auto"
    pair = [] if compared_scale is None else [compared_scale, processor.largest_trained().setting]
    answers = {
        scale: reference_answers(
            (model, processor), scale, arguments.pictures, arguments.max_tokens
        )
        for scale in dict.fromkeys([*scales, *pair])
    }
    load = [answer for scale in scales for answer in answers[scale]]
    questions = {scale: [question for question, _ in answers[scale]] for scale in answers}
    plan = Plan(
        [question for question, _ in load],
        (questions[pair[0]], questions[pair[1]]) if pair else None,
    )
    return plan, statistics.median(seconds for _, seconds in load)


def reference_answers(
    loaded: tuple[M3ForConditionalGeneration, M3Processor],
    scale: int | str,
    pictures_per_family: int,
    max_tokens: int,
) -> list[tuple[Question, float]]:
    """Every question at a scale with the model's answer, and the seconds that it took."""
    timed_questions = []
    for family, index in itertools.product(FAMILIES, range(pictures_per_family)):
        row = test_row(family, index, seed=0)
        start_time = time.perf_counter()
        conversation = Conversation(*loaded, Generation(max_tokens))
        conversation.show_image(row["image"]["bytes"])
        answer = conversation.ask(row["question"], scale).text
        question = Question(row["image"]["bytes"], row["question"], scale, max_tokens, answer)
        timed_questions.append((question, time.perf_counter() - start_time))
    return timed_questions


# ---------------------------------------------------------------------- 2. load
async def run_load(
    server: Server, questions: Sequence[Question], client_count: int, load_seconds: float
) -> tuple[list[RequestResult], list[float]]:
    """Results of all requests, and the server's memory over time."""
    memory: list[float] = []

    async def watch() -> None:
        for _ in range(SAMPLES):
            await asyncio.sleep(load_seconds / SAMPLES)
            memory.append(server.memory())

    results, _ = await asyncio.gather(
        run_clients(server.address, server.name, questions, client_count, load_seconds), watch()
    )
    return results, memory


def report_load(
    results: Sequence[RequestResult],
    memory: Sequence[float],
    load_seconds: float,
    seconds_alone: float,
) -> bool:
    """Print the results; true if all answers are those without a server."""
    error_texts = [result.error for result in results if result.error]
    wrong_count = sum(not result.is_right for result in results if not result.error)
    print(
        f"\n{len(results)} requests in {load_seconds:.0f} s, {len(error_texts)} errors, {wrong_count} "
        "answers that differ"
    )
    for error_text in sorted(set(error_texts)):
        print(f"  {error_text}: {error_texts.count(error_text)}")
    print("    scale  requests  seconds p50   p90   p99   first text p50   p99")
    for scale in dict.fromkeys(result.scale for result in results):
        scale_results = [result for result in results if result.scale == scale]
        seconds_whole = [result.seconds for result in scale_results]
        seconds_first = [r.first_seconds for r in scale_results if r.first_seconds is not None]
        print(
            f"{scale!s:>9}  {len(scale_results):8d}  "
            f"{_percentile_cells(seconds_whole, (50, 90, 99))}  "
            f"{_percentile_cells(seconds_first, (50, 99)):>20}"
        )
    request_rate = len(results) / load_seconds
    print(
        f"throughput {request_rate:.1f} a second, {request_rate * seconds_alone:.2f}x that of one "
        "after the other without a server"
    )
    fifth = len(memory) // 5
    growth = statistics.mean(memory[-fifth:]) - statistics.mean(memory[fifth : 2 * fifth])
    print(f"memory in MiB: {' '.join(f'{mebibytes:.0f}' for mebibytes in memory)}")
    print(f"its growth from the second fifth to the last: {growth:+.1f} MiB")
    return not error_texts and not wrong_count


def _percentile_cells(durations: Sequence[float], percentiles: Sequence[int]) -> str:
    if len(durations) < 2:
        return "-"
    percentile_cuts = statistics.quantiles(durations, n=100, method="inclusive")
    return "  ".join(f"{percentile_cuts[percentile - 1]:10.3f}"[4:] for percentile in percentiles)


# ---------------------------------------------------------------------- 3. one image at all scales
def report_tower_runs(
    server: Server, questions: Sequence[Question], scales: Sequence[int | str], rounds: int = 6
) -> bool:
    """Compare one new image at all scales with as many new images, one at each scale.

    The one passes the tower once at each resolution. Scales that are chosen or scheduled are left
    out.
    """
    scales = [scale for scale in scales if isinstance(read_policy(scale), Fixed)]
    if not scales:
        return True
    new_pictures = (renew_picture(questions[0].image) for _ in itertools.count())
    seconds: dict[bool, list[float]] = {True: [], False: []}
    runs: dict[bool, set[float]] = {True: set(), False: set()}
    with httpx2.Client(base_url=server.address, timeout=60) as http_client:
        for turn_number in range(2 * rounds):
            is_repeated = turn_number % 2 == 0
            turn_pictures = [next(new_pictures) for _ in (scales[:1] if is_repeated else scales)]
            runs_before, start_time = server.metric("m3_tower_runs_total"), time.perf_counter()
            for image, scale in zip(itertools.cycle(turn_pictures), scales, strict=False):
                question = Question(image, questions[0].text, scale, 1, "")
                request_body = question.body(server.name, stream=False)
                http_client.post("/v1/chat/completions", json=request_body).raise_for_status()
            seconds[is_repeated].append(time.perf_counter() - start_time)
            runs[is_repeated].add(server.metric("m3_tower_runs_total") - runs_before)
    ratio = statistics.median(seconds[True]) / statistics.median(seconds[False])
    print(
        f"\none image at {len(scales)} scales: tower runs {_number_list(runs[True])}; "
        f"{len(scales)} images: {_number_list(runs[False])}"
    )
    print(f"the one image takes {ratio:.2f} of the time of the {len(scales)}")
    views = float(len(resolutions(map(read_budget, scales))))
    return runs == {True: {views}, False: {float(len(scales))}}


def _number_list(values: set[float]) -> str:
    return ", ".join(f"{number:g}" for number in sorted(values))


# ---------------------------------------------------------------------- 5. the end
async def report_shutdown(server: Server, questions: Sequence[Question], client_count: int) -> bool:
    """Send SIGTERM with a request of every client accepted; true if it answers all, then ends."""
    rng = random.Random(1)
    expected_count = server.metric("m3_accepted_total") + client_count
    limits = httpx2.Limits(max_connections=client_count)
    async with httpx2.AsyncClient(base_url=server.address, timeout=120, limits=limits) as http:
        request_tasks = [
            asyncio.ensure_future(ask_server(http, server.name, rng.choice(questions), n % 2 == 0))
            for n in range(client_count)
        ]
        while await asyncio.to_thread(server.metric, "m3_accepted_total") < expected_count:
            await asyncio.sleep(0.01)
        waiting_count = sum(not task.done() for task in request_tasks)
        server.process.send_signal(signal.SIGTERM)
        results = await asyncio.gather(*request_tasks)
    exit_code = await asyncio.to_thread(server.process.wait)
    answered_count = sum(not result.error and result.is_right for result in results)
    print(
        f"\nSIGTERM with {waiting_count} of {client_count} requests under way: {answered_count} of "
        f"{client_count} answered, exit code {exit_code}"
    )
    return answered_count == client_count and exit_code == 0
