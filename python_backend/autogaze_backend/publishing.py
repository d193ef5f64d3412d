"""Hands what the runtime counts to Triton's metrics page, through the python backend.

A call into the server takes 25 to 40 µs and waits for it (tritonserver 2.51 on 2 cores), so nothing is handed
over while requests are served: a thread does it once a second. A histogram goes over as the counters
``_bucket``, ``_sum`` and ``_count``, which are what Prometheus reads of one; handing over each observation
would cost a call each.

Families and series are never deleted. Every model and version has its own handle of a family, but Triton's
core has one family a name: deleting one handle frees what the others still write to, and the server crashes
at the next reload (seen with 2.51). So the series of an unloaded version stay on the page; its gauges are 0.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Mapping
from typing import Any

from autogaze_backend.metrics import Labels, Meters, MetricKind, Sample

_LOG = logging.getLogger("autogaze")

PERIOD_SECONDS = 1.0
"""From one hand-over to the next."""

# The instances of a model share its series. What each of them has is added up; these say the same in each.
_SAME_EVERYWHERE = frozenset({"autogaze_engine_info"})


class TritonPublisher:
    """Publishes samples until it is closed.

    Args:
        meters: what to publish.
        pb_utils: the server's ``triton_python_backend_utils``.
        labels: of every series: the model and its version.
        period: seconds between two hand-overs.
    """

    def __init__(
        self, meters: Meters, pb_utils: Any, labels: Mapping[str, str], *, period: float = PERIOD_SECONDS
    ) -> None:
        self._meters, self._pb_utils = meters, pb_utils
        self._labels, self._period = dict(labels), period
        self._families: dict[str, Any] = {}
        self._series: dict[tuple[str, Labels], Any] = {}
        self._published: dict[tuple[str, Labels], float] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="autogaze-metrics", daemon=True)
        self._thread.start()

    def publish(self) -> None:
        """Hands over what has changed since the last time."""
        for sample in self._meters.samples():
            key = (sample.name, sample.labels)
            last = self._published.get(key)
            if sample.value == last:
                continue
            series = self._series.get(key)
            if series is None:
                series = self._series[key] = self._create(sample)
            if sample.metric.name in _SAME_EVERYWHERE:
                series.set(sample.value)
            elif sample.value != (last or 0.0):
                series.increment(sample.value - (last or 0.0))
            self._published[key] = sample.value

    def close(self) -> None:
        """Hands over the rest; what is in use is then 0."""
        self._stopped.set()
        self._thread.join()

    def _create(self, sample: Sample) -> Any:
        kinds = self._pb_utils.MetricFamily
        family = self._families.get(sample.name)
        if family is None:
            kind = kinds.GAUGE if sample.metric.kind is MetricKind.GAUGE else kinds.COUNTER
            family = kinds(name=sample.name, description=sample.metric.help, kind=kind)
            self._families[sample.name] = never_deleted(family)
        return never_deleted(family.Metric(labels={**self._labels, **dict(sample.labels)}))

    def _clear_gauges(self) -> None:
        for sample in self._meters.samples():
            if sample.metric.kind is not MetricKind.GAUGE:
                continue
            key = sample.name, sample.labels
            if sample.metric.name in _SAME_EVERYWHERE:
                self._series[key].set(0.0)
            elif self._published[key]:
                self._series[key].increment(-self._published[key])

    def _run(self) -> None:
        stopped = False
        while not stopped:
            stopped = self._stopped.wait(self._period)
            try:
                self.publish()
                if stopped:
                    self._clear_gauges()
            except Exception as error:
                # Metrics are switched off (--allow-metrics=false), or the server is older than they are.
                _LOG.warning("metrics are not published: %s", error)
                return


def never_deleted(handle: Any) -> Any:
    """A family or series, with a reference that nobody gives back, not even the interpreter's end.

    For every handle that a model takes from Triton: see the top of this module.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(handle))
    return handle
