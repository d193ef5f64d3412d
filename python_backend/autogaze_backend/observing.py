"""Watches the requests of one served model: its metrics, its log lines, and their request ids."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from autogaze_client._errors import (
    AutoGazeError,
    DeadlineExceededError,
    InvalidInputError,
    NotFoundError,
    RequestCancelledError,
    ServerUnavailableError,
)
from numpy.typing import NDArray

from autogaze_backend.logs import LogFormat, configure_logging
from autogaze_backend.metering import MeteredModel
from autogaze_backend.metrics import Meters
from autogaze_backend.model import GazeModel
from autogaze_backend.publishing import TritonPublisher

_LOG = logging.getLogger("autogaze.requests")

Tensors = Mapping[str, NDArray[Any]]
Finish = Callable[[Tensors | Exception], None]

_OUTCOMES: tuple[tuple[type[Exception], str], ...] = (
    (InvalidInputError, "invalid"),
    (NotFoundError, "not_found"),
    (ServerUnavailableError, "unavailable"),
    (DeadlineExceededError, "unavailable"),
    (RequestCancelledError, "cancelled"),
)


class RequestEnd(NamedTuple):
    """What a request that succeeded came to.

    Attributes:
        frames: of it.
        rows: likewise.
        tokens: chosen in all of them.
    """

    frames: int
    rows: int
    tokens: int


class Observer:
    """Counts and logs the requests of a served model.

    Args:
        model: its name.
        version: of the model.
        meters: where to count.
        each_request: whether every request is logged, at level info; else only those that failed for another
            reason than their input are.
        stage: the stage that the whole of a request is timed as; empty where stages are timed inside.
        instance: of the model, for the log; metrics are those of all instances together.
    """

    def __init__(
        self,
        model: str,
        version: str,
        meters: Meters,
        *,
        each_request: bool = False,
        stage: str = "",
        instance: str = "",
    ) -> None:
        self.meters = meters
        self._about = {"model": model, "version": version, **({"instance": instance} if instance else {})}
        self._each_request, self._stage = each_request, stage
        self._publisher: TritonPublisher | None = None
        self._most = 1
        self._served = meters.recorder("autogaze_requests_total", outcome="ok")
        self._frames = meters.recorder("autogaze_frames_total")
        self._tokens = meters.recorder("autogaze_tokens_total")
        self._per_frame = meters.recorder("autogaze_tokens_per_frame")
        self._ratio = meters.recorder("autogaze_gaze_ratio")

    @classmethod
    def for_model(cls, pb_utils: Any, args: Mapping[str, str], *, stage: str = "") -> Observer:
        """The observer of the model that ``initialize`` is called for: publishes to Triton, sets up the log.

        Raises:
            InvalidInputError: AUTOGAZE_LOG_FORMAT or AUTOGAZE_LOG_LEVEL is none that exists.
        """
        each_request = configure_logging() is LogFormat.JSON
        about: Any = {"model": args["model_name"], "version": args["model_version"]}
        instance = args.get("model_instance_name", "")
        observer = cls(**about, meters=Meters(), each_request=each_request, stage=stage, instance=instance)
        observer._publisher = TritonPublisher(observer.meters, pb_utils, about)
        return observer

    def metered(self, model: GazeModel) -> MeteredModel:
        """The model, its engine counted."""
        self._most = model.spec.tokens_per_frame
        return MeteredModel(model, self.meters)

    def begin(self, request: Any) -> Finish:
        """Notes that a request has come; the function that it returns is told how it ended, once."""
        started = time.perf_counter()
        about = self._about_request(request)

        def finish(result: Tensors | Exception) -> None:
            milliseconds = (time.perf_counter() - started) * 1e3
            outcome = outcome_of(result)
            if outcome == "ok":
                self._served()
            else:
                self.meters.add("autogaze_requests_total", outcome=outcome)
            if self._stage and not isinstance(result, Exception):
                self.meters.observe("autogaze_stage_milliseconds", milliseconds, stage=self._stage)
            facts = {} if isinstance(result, Exception) else self._count_tokens(result)
            self._log(result, {**about, "outcome": outcome, "milliseconds": round(milliseconds, 3), **facts})

        return finish

    def batch_ended(
        self, requests: Sequence[Any], ends: Sequence[RequestEnd | Exception], milliseconds: float
    ) -> None:
        """Notes how requests ended that came and were answered together.

        Args:
            requests: of the server.
            ends: of each.
            milliseconds: from when they came to now.
        """
        served = [end for end in ends if isinstance(end, RequestEnd)]
        meters = self.meters
        if served:
            meters.add("autogaze_requests_total", len(served), outcome="ok")
            meters.add("autogaze_frames_total", sum(end.frames for end in served))
            meters.add("autogaze_tokens_total", sum(end.tokens for end in served))
            means = [end.tokens / (end.frames * end.rows) for end in served if end.frames]
            meters.observe_all("autogaze_tokens_per_frame", means)
            meters.observe_all("autogaze_gaze_ratio", [mean / self._most for mean in means])
        if len(served) == len(ends) and not self._each_request:
            return
        for request, end in zip(requests, ends, strict=True):
            outcome, facts = "ok", {}
            if isinstance(end, RequestEnd):
                facts = {"frames": end.frames, "tokens": end.tokens}
            else:
                outcome = outcome_of(end)
                meters.add("autogaze_requests_total", outcome=outcome)
            about = {**self._about_request(request), "outcome": outcome}
            self._log(
                end if isinstance(end, Exception) else {},
                {**about, "milliseconds": round(milliseconds, 3), **facts},
            )

    def close(self) -> None:
        """Publishes what is left."""
        if self._publisher is not None:
            self._publisher.close()

    def _about_request(self, request: Any) -> dict[str, Any]:
        about = {**self._about, "request_id": request.request_id()}
        correlation = request.correlation_id()
        if correlation:
            about["correlation_id"] = correlation
        return about

    def _count_tokens(self, outputs: Tensors) -> dict[str, int]:
        if "GAZING_POS" not in outputs:
            return {}
        frames = len(outputs["NUM_GAZING_EACH_FRAME"])
        padded = outputs["IF_PADDED_GAZING"]
        tokens = int(padded.size - np.count_nonzero(padded))
        self._frames(frames)
        self._tokens(tokens)
        if frames:
            per_frame = tokens / (frames * len(padded))
            most = int((outputs["SCALE_GRIDS"].astype(np.int64) ** 2).sum())
            self._per_frame(per_frame)
            self._ratio(per_frame / most)
        return {"frames": frames, "tokens": tokens}

    def _log(self, result: Tensors | Exception, fields: dict[str, Any]) -> None:
        if not isinstance(result, Exception):
            if self._each_request:
                _LOG.info("request served", extra=fields)
        elif not isinstance(result, AutoGazeError):
            _LOG.error("a request failed", exc_info=result, extra=fields)
        elif isinstance(result, RequestCancelledError | DeadlineExceededError):
            # Nobody reads the answer, so the log is the only trace.
            _LOG.warning("%s", result, extra=fields)
        elif self._each_request:
            _LOG.info("request refused: %s", result, extra=fields)


def outcome_of(result: Tensors | Exception) -> str:
    """The label of a request's end: ok, invalid, not_found, unavailable, cancelled or internal."""
    if not isinstance(result, Exception):
        return "ok"
    return next((name for kind, name in _OUTCOMES if isinstance(result, kind)), "internal")
