"""Asks a running server by a canary whether it does its work."""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from autogaze_client._errors import ServerUnavailableError

from autogaze_backend.requests import Knobs
from autogaze_backend.serving.connections import CallFailedError, Inference, ServerConnection

__all__ = ["ServerCanary"]

CLIP_MODEL = "autogaze_generate"
STREAM_MODEL = "autogaze_stream"
_METRICS_SECONDS = 2.0
# Triton's words for a queue that is full or too slow, which is load and no fault.
_OVERLOAD = ("Exceeds maximum queue size", "timeout expired", "for one of")


@dataclass(frozen=True)
class _Question:
    model: str
    tensors: Mapping[str, np.ndarray[Any, Any]]
    options: Mapping[str, int | bool]


class ServerCanary:
    """A small request to each model that has an engine, as a client sends it.

    One black frame as a clip to ``autogaze_generate``, past decoding, whose queue a long video may hold; and one
    as a whole stream (START and END) to ``autogaze_stream``, where it takes no place. Every version that is loaded
    is asked. A server that has neither model is asked for its name only.

    A canary that waits too long in a server that works is no fault: an engine whose steps were counted meanwhile
    is busy. A restart would only throw the work away.

    Args:
        connection: to the server; closed with the canary.
        metrics_url: its Prometheus page, which is plain HTTP also under TLS.
        name: its Triton server id.
        timeout: seconds that each request may take.
    """

    def __init__(self, connection: ServerConnection, metrics_url: str, name: str, *, timeout: float) -> None:
        self._connection = connection
        self._metrics_url, self._name, self._timeout = metrics_url, name, timeout
        # No proxy for the outside world.
        self._http = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        frame = np.zeros((1, 16, 16, 3), np.uint8)
        knobs = {
            name: array[None]
            for name, array in Knobs(max_gaze_tokens=np.ones(1, np.int64)).to_tensors().items()
        }
        self._questions = (
            _Question(CLIP_MODEL, {"FRAMES": frame[None], **knobs}, {"priority": 1}),
            _Question(
                STREAM_MODEL,
                {"FRAME": frame, "MAX_GAZE_TOKENS": knobs["MAX_GAZE_TOKENS"]},
                # The largest that tritonclient sends; clients take random ones.
                {"sequence_id": 2**63 - 1, "sequence_start": True, "sequence_end": True},
            ),
        )

    def run(self) -> None:
        """Returns when the server has answered, or is busy.

        Raises:
            ServerUnavailableError: it has not; the message says what failed.
        """
        try:
            name = self._connection.server_name()
            loaded = self._connection.loaded_models()
        except CallFailedError as error:
            raise ServerUnavailableError(f"the server does not answer: {error}") from error
        if name != self._name:
            raise ServerUnavailableError(f"another server, {name!r}, answers in place of {self._name!r}")
        for question in self._questions:
            for version in sorted(version for model, version in loaded if model == question.model):
                self._ask(question, version)

    def is_loaded(self, model: str) -> bool:
        """Whether any version of a model is to serve requests; where the server does not answer, it is."""
        try:
            return any(name == model for name, _ in self._connection.loaded_models())
        except CallFailedError:
            return True

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    def _ask(self, question: _Question, version: str) -> None:
        before = self._steps(question.model)
        inference = Inference(question.model, version, question.tensors, question.options, "canary")
        try:
            self._connection.infer(inference, self._timeout)
        except CallFailedError as error:
            message = str(error)
            late = error.is_late or any(sign in message for sign in _OVERLOAD)
            if late and self._steps(question.model) > before:
                return
            what = f"no answer within {self._timeout:g} s, and no step of its engine" if late else message
            raise ServerUnavailableError(
                f"the canary of {question.model} version {version} failed: {what}"
            ) from error

    def _steps(self, model: str) -> float:
        """Engine calls of a model so far; 0 where they are not published."""
        try:
            with self._http.open(self._metrics_url, timeout=_METRICS_SECONDS) as page:
                text = page.read().decode(errors="replace")
        except OSError:
            return 0.0
        return sum(
            float(line.rpartition(" ")[2])
            for line in text.splitlines()
            if line.startswith("autogaze_steps_total{") and f'model="{model}"' in line
        )
