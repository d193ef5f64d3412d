"""Asks a running server by a canary whether it does its work."""

from __future__ import annotations

import importlib
import urllib.request
from dataclasses import dataclass
from typing import Any

import numpy as np
from autogaze_client._errors import ServerUnavailableError

from autogaze_backend.requests import Knobs

__all__ = ["ServerCanary"]

CLIP_MODEL = "autogaze_generate"
STREAM_MODEL = "autogaze_stream"
# Of a server on this machine that lives.
_CONTROL_SECONDS = 2.0
# Triton's words for a queue that is full or too slow, which is load and no fault.
_OVERLOAD = ("Exceeds maximum queue size", "timeout expired", "for one of")


@dataclass(frozen=True)
class _Question:
    model: str
    tensors: dict[str, np.ndarray[Any, Any]]
    options: dict[str, Any]


class ServerCanary:
    """A small request to each model that has an engine, as a client sends it.

    One black frame as a clip to ``autogaze_generate``, past decoding, whose queue a long video may hold; and one
    as a whole stream (START and END) to ``autogaze_stream``, where it takes no place. Every version that is loaded
    is asked. A server that has neither model is asked for its name only.

    A canary that waits too long in a server that works is no fault: an engine whose steps were counted meanwhile
    is busy. A restart would only throw the work away.

    Args:
        url: gRPC address of the server.
        metrics_url: its Prometheus page.
        name: its Triton server id.
        timeout: seconds that each request may take.
    """

    def __init__(self, url: str, metrics_url: str, name: str, *, timeout: float) -> None:
        self._grpc: Any = importlib.import_module("tritonclient.grpc")
        self._errors: Any = importlib.import_module("tritonclient.utils")
        self._client = local_client(url)
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
            name = self._client.get_server_metadata(client_timeout=_CONTROL_SECONDS).name
            index = self._client.get_model_repository_index(client_timeout=_CONTROL_SECONDS).models
        except self._errors.InferenceServerException as error:
            raise ServerUnavailableError(f"the server does not answer: {error.message()}") from error
        if name != self._name:
            raise ServerUnavailableError(f"another server, {name!r}, answers in place of {self._name!r}")
        for question in self._questions:
            for version in sorted(
                entry.version for entry in index if entry.name == question.model and entry.state == "READY"
            ):
                self._ask(question, version)

    def is_loaded(self, model: str) -> bool:
        """Whether any version of a model is to serve requests; where the server does not answer, it is."""
        try:
            index = self._client.get_model_repository_index(client_timeout=_CONTROL_SECONDS).models
        except self._errors.InferenceServerException:
            return True
        return any(entry.name == model and entry.state == "READY" for entry in index)

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    def _ask(self, question: _Question, version: str) -> None:
        inputs = []
        for name, array in question.tensors.items():
            tensor = self._grpc.InferInput(
                name, list(array.shape), self._errors.np_to_triton_dtype(array.dtype)
            )
            tensor.set_data_from_numpy(array)
            inputs.append(tensor)
        before = self._steps(question.model)
        try:
            self._client.infer(
                question.model,
                inputs,
                model_version=version,
                request_id="canary",
                client_timeout=self._timeout,
                **question.options,
            )
        except self._errors.InferenceServerException as error:
            status, message = str(error.status()), str(error.message())
            late = status == "StatusCode.DEADLINE_EXCEEDED" or any(sign in message for sign in _OVERLOAD)
            if late and self._steps(question.model) > before:
                return
            what = f"no answer within {self._timeout:g} s, and no step of its engine" if late else message
            raise ServerUnavailableError(
                f"the canary of {question.model} version {version} failed: {what}"
            ) from error

    def _steps(self, model: str) -> float:
        """Engine calls of a model so far; 0 where they are not published."""
        try:
            with self._http.open(self._metrics_url, timeout=_CONTROL_SECONDS) as page:
                text = page.read().decode(errors="replace")
        except OSError:
            return 0.0
        return sum(
            float(line.rpartition(" ")[2])
            for line in text.splitlines()
            if line.startswith("autogaze_steps_total{") and f'model="{model}"' in line
        )


def local_client(url: str) -> Any:
    """A gRPC client for a server on this machine, which comes back fast after a restart."""
    grpc: Any = importlib.import_module("tritonclient.grpc")
    # A proxy for the outside world must not be asked for this machine.
    arguments = [("grpc.enable_http_proxy", 0), ("grpc.initial_reconnect_backoff_ms", 100)]
    arguments += [("grpc.min_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 300)]
    # Clients of one address share a connection otherwise, and with it its state after a restart.
    arguments += [("grpc.use_local_subchannel_pool", 1)]
    return grpc.InferenceServerClient(url, channel_args=arguments)
