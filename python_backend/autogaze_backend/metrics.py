"""What the runtime counts: recorded in this process at about a microsecond each, and read as Prometheus samples.

Works without a server (``Meters.text``). In one, ``autogaze_backend.publishing`` hands the samples to Triton.
"""

from __future__ import annotations

import bisect
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from autogaze_client._errors import InvalidInputError

Labels = tuple[tuple[str, str], ...]

_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_MILLISECONDS = (0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000)
_TOKENS = (1, 2, 4, 8, 16, 32, 64, 96, 128, 160, 192, 224, 256)
_RATIOS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9, 1)


class MetricKind(Enum):
    """How a metric moves."""

    COUNTER = "counter"
    """Only upwards."""

    GAUGE = "gauge"
    """To any value."""

    HISTOGRAM = "histogram"
    """Counts of observations at or below each bound, their sum and their number."""


@dataclass(frozen=True)
class Metric:
    """A family of series.

    Attributes:
        name: in Prometheus.
        kind: how it moves.
        help: what it counts, and in which unit.
        labels: that each of its series has, beside the model and version of the server.
        bounds: upper bounds of a histogram's buckets, ascending; infinity comes of itself.
    """

    name: str
    kind: MetricKind
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


METRICS = {
    metric.name: metric
    for metric in (
        Metric("autogaze_requests_total", MetricKind.COUNTER, "Requests answered, by outcome", ("outcome",)),
        Metric("autogaze_frames_total", MetricKind.COUNTER, "Frames of the requests that succeeded"),
        Metric("autogaze_tokens_total", MetricKind.COUNTER, "Tokens chosen by the requests that succeeded"),
        Metric(
            "autogaze_tokens_per_frame",
            MetricKind.HISTOGRAM,
            "Tokens a frame and row: the mean of each request that succeeded",
            bounds=_TOKENS,
        ),
        Metric(
            "autogaze_gaze_ratio",
            MetricKind.HISTOGRAM,
            "Share of the tokens that a request that succeeded could have chosen",
            bounds=_RATIOS,
        ),
        Metric("autogaze_steps_total", MetricKind.COUNTER, "Calls of the engine's phases", ("phase",)),
        Metric(
            "autogaze_batch_rows", MetricKind.HISTOGRAM, "Rows of each call of the engine", ("phase",), _ROWS
        ),
        Metric(
            "autogaze_stage_milliseconds",
            MetricKind.HISTOGRAM,
            "Milliseconds of each run of a stage",
            ("stage",),
            _MILLISECONDS,
        ),
        Metric(
            "autogaze_engine_info",
            MetricKind.GAUGE,
            "What runs the model: always 1, the labels are the value",
            ("engine", "precision", "engine_version", "device"),
        ),
        Metric("autogaze_slots_in_use", MetricKind.GAUGE, "Cache slots that hold a row"),
        Metric("autogaze_streams_open", MetricKind.GAUGE, "Streams that the server holds"),
        Metric(
            "autogaze_stream_evictions_total",
            MetricKind.COUNTER,
            "Streams given up, for another's sake (evicted) or idle too long (expired)",
            ("reason",),
        ),
    )
}
"""Every metric of the runtime, by name."""


@dataclass(frozen=True)
class Sample:
    """The present value of a series.

    Attributes:
        name: the series' own: of a histogram with ``_bucket``, ``_sum`` or ``_count`` at its end.
        metric: its family.
        labels: sorted by name; a bucket has ``le``.
        value: cumulative, but for gauges.
    """

    name: str
    metric: Metric
    labels: Labels
    value: float


class Meters:
    """Everything that one process counts. Thread-safe.

    Example:
        >>> meters = Meters()
        >>> meters.add("autogaze_frames_total", 16)
        >>> [sample.value for sample in meters.samples()]
        [16.0]
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[tuple[str, Labels], float] = {}
        self._buckets: dict[tuple[str, Labels], list[int]] = {}
        self._collectors: list[Callable[[], None]] = []

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Moves a counter on.

        Raises:
            InvalidInputError: an unknown metric, one of another kind or with other labels, or a step backwards.
        """
        key = _key(name, labels, MetricKind.COUNTER)
        if not amount >= 0:
            raise InvalidInputError(f"{name} was given {amount}; a counter takes 0 or more")
        with self._lock:
            self._values[key] = self._values.get(key, 0.0) + amount

    def total(self, name: str, value: float, **labels: str) -> None:
        """Sets a counter to what another object has counted so far.

        Raises:
            InvalidInputError: as ``add``; the value is below the last one.
        """
        key = _key(name, labels, MetricKind.COUNTER)
        with self._lock:
            if value < self._values.get(key, 0.0):
                raise InvalidInputError(f"{name} was given the total {value}, below {self._values[key]}")
            self._values[key] = float(value)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Sets a gauge.

        Raises:
            InvalidInputError: an unknown metric, or one of another kind or with other labels.
        """
        key = _key(name, labels, MetricKind.GAUGE)
        with self._lock:
            self._values[key] = float(value)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Counts a value in a histogram.

        Raises:
            InvalidInputError: an unknown metric, or one of another kind or with other labels.
        """
        key = _key(name, labels, MetricKind.HISTOGRAM)
        bounds = METRICS[name].bounds
        with self._lock:
            buckets = self._buckets.setdefault(key, [0] * (len(bounds) + 1))
            buckets[bisect.bisect_left(bounds, value)] += 1
            self._values[key] = self._values.get(key, 0.0) + value

    def observe_all(self, name: str, values: Sequence[float], **labels: str) -> None:
        """Counts several values in a histogram at once.

        Raises:
            InvalidInputError: as ``observe``.
        """
        if not values:
            return
        key = _key(name, labels, MetricKind.HISTOGRAM)
        bounds = METRICS[name].bounds
        with self._lock:
            buckets = self._buckets.setdefault(key, [0] * (len(bounds) + 1))
            for value in values:
                buckets[bisect.bisect_left(bounds, value)] += 1
            self._values[key] = self._values.get(key, 0.0) + sum(values)

    def recorder(self, name: str, **labels: str) -> Callable[..., None]:
        """What counts in one series, its name and labels checked once: for what is counted many times a request.

        Returns:
            Of a counter ``(amount)``, as ``add``; of a histogram ``(value, times=1)``, as ``observe`` so many times.

        Raises:
            InvalidInputError: an unknown metric, a gauge, or other labels.
        """
        metric, lock, values = METRICS.get(name), self._lock, self._values
        if metric is None or metric.kind is not MetricKind.HISTOGRAM:
            key = _key(name, labels, MetricKind.COUNTER)

            def count(amount: float = 1) -> None:
                if not amount >= 0:
                    raise InvalidInputError(f"{name} was given {amount}; a counter takes 0 or more")
                with lock:
                    values[key] = values.get(key, 0.0) + amount

            return count
        key, bounds = _key(name, labels, MetricKind.HISTOGRAM), metric.bounds
        all_buckets, empty = self._buckets, [0] * (len(metric.bounds) + 1)

        def observe(value: float, times: int = 1) -> None:
            with lock:
                # Another recorder of the series may have begun it; one that is never used leaves no trace.
                buckets = all_buckets.get(key)
                if buckets is None:
                    buckets = all_buckets[key] = list(empty)
                buckets[bisect.bisect_left(bounds, value)] += times
                values[key] = values.get(key, 0.0) + value * times

        return observe

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times what runs inside as a run of stage ``name``, also where it fails."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.observe("autogaze_stage_milliseconds", (time.perf_counter() - started) * 1e3, stage=name)

    def on_collect(self, collect: Callable[[], None]) -> None:
        """Has ``collect`` called before samples are read, to fetch what others count."""
        self._collectors.append(collect)

    def samples(self) -> list[Sample]:
        """The present value of every series that was ever touched, family by family."""
        for collect in self._collectors:
            collect()
        found: list[Sample] = []
        with self._lock:
            values = dict(self._values)
            buckets = {key: list(counts) for key, counts in self._buckets.items()}
        order = list(METRICS)
        for (name, labels), value in sorted(
            values.items(), key=lambda item: (order.index(item[0][0]), item[0][1])
        ):
            metric = METRICS[name]
            if metric.kind is not MetricKind.HISTOGRAM:
                found.append(Sample(name, metric, labels, value))
                continue
            count = 0
            for bound, here in zip((*metric.bounds, float("inf")), buckets[name, labels], strict=True):
                count += here
                with_bound = tuple(sorted((*labels, ("le", _bound(bound)))))
                found.append(Sample(f"{name}_bucket", metric, with_bound, float(count)))
            found.append(Sample(f"{name}_sum", metric, labels, value))
            found.append(Sample(f"{name}_count", metric, labels, float(count)))
        return found

    def text(self) -> str:
        """The samples as a Prometheus page, for processes without a server."""
        lines: list[str] = []
        family = ""
        for sample in self.samples():
            if sample.metric.name != family:
                family = sample.metric.name
                lines += [
                    f"# HELP {family} {sample.metric.help}",
                    f"# TYPE {family} {sample.metric.kind.value}",
                ]
            labels = ",".join(f'{name}="{value}"' for name, value in sample.labels)
            series = f"{sample.name}{{{labels}}}" if labels else sample.name
            lines.append(f"{series} {sample.value:.17g}")
        return "\n".join(lines) + "\n"


def _key(name: str, labels: dict[str, str], kind: MetricKind) -> tuple[str, Labels]:
    return _checked(name, tuple(labels.items()), kind)


@lru_cache(maxsize=1024)
def _checked(name: str, labels: Labels, kind: MetricKind) -> tuple[str, Labels]:
    metric = METRICS.get(name)
    given = sorted(label for label, _ in labels)
    if metric is None or metric.kind is not kind or given != sorted(metric.labels):
        raise InvalidInputError(
            f"{name} with labels {given} is no {kind.value} of autogaze_backend.metrics.METRICS; correct the "
            "name, the kind or the labels"
        )
    return name, tuple(sorted(labels))


def _bound(value: float) -> str:
    return "+Inf" if value == float("inf") else f"{value:g}"
