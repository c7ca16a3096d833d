"""The figures of the server, as Prometheus reads them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from learn2pd.serving.batch import Answer
from learn2pd.serving.engine import Engine

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)  # upper ends of the classes of a histogram


class Metrics:
    """Counts what the server does.

    Args:
        engine: The engine, whose rows, queue and steps are shown.
    """

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "learn2pd_requests", "requests by path and status", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "learn2pd_request_seconds", "from a request to its end", ["path"], buckets=SECONDS, registry=self.registry
        )
        self.hung_up = Counter(
            "learn2pd_hung_up", "requests whose client left before the answer", registry=self.registry
        )
        self.prompt_tokens = Counter("learn2pd_prompt_tokens", "tokens of prompts", registry=self.registry)
        self.tokens = Counter("learn2pd_answer_tokens", "tokens of answers", registry=self.registry)
        self.forwards = Counter("learn2pd_forwards", "forwards, counted for every request", registry=self.registry)
        running = Gauge("learn2pd_running", "requests that are being decoded", registry=self.registry)
        running.set_function(lambda: engine.running)
        waiting = Gauge("learn2pd_waiting", "requests that wait for a row", registry=self.registry)
        waiting.set_function(lambda: engine.waiting)
        self.registry.register(_Steps(engine))

    def count(self, answer: Answer) -> None:
        """Count an answer."""
        self.tokens.inc(answer.tokens)
        self.forwards.inc(answer.forwards)

    def text(self) -> bytes:
        """Return all figures in Prometheus' format."""
        return generate_latest(self.registry)


class _Steps(Collector):
    """Shows the engine's own counts."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def collect(self) -> list[CounterMetricFamily]:
        return [
            CounterMetricFamily("learn2pd_steps", "steps of batches", value=self.engine.steps),
            CounterMetricFamily("learn2pd_row_steps", "requests in these steps", value=self.engine.row_steps),
        ]
