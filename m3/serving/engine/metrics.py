"""Counters of a server, in Prometheus' format.

One registry per engine, so that several live in one process.
"""

from collections import deque
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from m3.serving.engine.requests import Finished

MOST_ENDS = 64
LATE_SECONDS = 60.0
"""What ended before that tells nothing of the pace now."""
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Pace:
    """Seconds between the ends of requests, of late.

    Belongs to one lock or thread of its owner.
    """

    def __init__(self) -> None:
        self._ends: deque[float] = deque(maxlen=MOST_ENDS)

    def count(self, moment: float) -> None:
        """A request ended, at `moment` seconds of a clock."""
        self._ends.append(moment)

    def seconds(self, requests: int, moment: float) -> float:
        """Until so many requests will have ended; 0 where nobody can tell."""
        recent_ends = [end for end in self._ends if moment - end < LATE_SECONDS]
        if len(recent_ends) < 2:
            return 0.0
        return requests * (moment - recent_ends[0]) / len(recent_ends)


class Metrics:
    """Counters, gauges and histograms, by the names they have at /metrics."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.responses = Counter(
            "m3_http_responses",
            "HTTP responses by path and status",
            ["path", "status"],
            registry=registry,
        )
        self.accepted = Counter("m3_accepted", "Requests accepted", registry=registry)
        self.requests = Counter(
            "m3_requests", "Requests that ended, by how", ["outcome"], registry=registry
        )
        self.prompt_tokens = Counter(
            "m3_prompt_tokens", "Tokens read, visual ones included", registry=registry
        )
        self.new_tokens = Counter("m3_new_tokens", "Tokens written", registry=registry)
        self.visual_tokens = Counter(
            "m3_visual_tokens", "Visual tokens read", ["scale"], registry=registry
        )
        self.pictures = Counter(
            "m3_pictures", "Stills and frames read", ["scale"], registry=registry
        )
        self.first_token = Histogram(
            "m3_first_token_seconds",
            "From acceptance to the first token",
            ["scale"],
            buckets=SECONDS,
            registry=registry,
        )
        self.seconds = Histogram(
            "m3_request_seconds",
            "From acceptance to the last token",
            ["scale"],
            buckets=SECONDS,
            registry=registry,
        )
        self.waiting = Gauge(
            "m3_requests_waiting", "Accepted, not yet in the batch", registry=registry
        )
        self.running = Gauge("m3_requests_running", "In the batch", registry=registry)
        self.steps = Counter("m3_decode_steps", "Steps of the batch", registry=registry)
        self.tower_runs = Counter(
            "m3_tower_runs", "Runs of vision tower and connector", registry=registry
        )
        self.tower_images = Counter(
            "m3_tower_images", "Images seen by the tower", registry=registry
        )
        self.cache_hits = Counter(
            "m3_cache_hits", "Images whose features were kept", registry=registry
        )
        self.cache_misses = Counter(
            "m3_cache_misses", "Images whose features were not", registry=registry
        )
        self.cache_bytes = Gauge("m3_cache_bytes", "Bytes of features kept", registry=registry)
        self.cache_entries = Gauge("m3_cache_entries", "Images and videos kept", registry=registry)

    def count_cache(self, hits: Iterable[bool]) -> None:
        """For each image or video of a request: was it kept?"""
        for hit in hits:
            (self.cache_hits if hit else self.cache_misses).inc()

    def count(self, finished: Finished) -> None:
        """An answer that was given; the prompt of several counts with the first."""
        usage, scales = finished.usage, finished.usage.scales_of
        self.new_tokens.inc(usage.new_tokens)
        if finished.index == 0:
            self.prompt_tokens.inc(usage.prompt_tokens)
            for scale, tokens in zip(scales, usage.visual_tokens_of, strict=True):
                self.visual_tokens.labels(scale).inc(tokens)
                self.pictures.labels(scale).inc()
        label = "none" if not scales else str(scales[0]) if len(set(scales)) == 1 else "mixed"
        self.first_token.labels(label).observe(finished.first_token_seconds)
        self.seconds.labels(label).observe(finished.seconds)
