"""A server in this process: it answers the ensemble's wire with tokens that depend on the frames alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable

import numpy as np
from autogaze_client import InferenceError, ModelStatistics, layouts_from_grids
from autogaze_client._transport import CallOptions
from autogaze_client.generated import AutoGazeGenerateOutput

GRIDS = (2, 4, 7, 14)
N = 265


def generated_for(frames: int, *, rows: int = 1, slots: int = 3, seed: int = 0) -> AutoGazeGenerateOutput:
    """Distinct ids in every frame, the last slot of each frame padded."""
    rng = np.random.default_rng(seed)
    local = np.stack([[rng.choice(N, slots, replace=False) for _ in range(frames)] for _ in range(rows)])
    padded = np.zeros(local.shape, bool)
    padded[..., -1] = True
    local[padded] = N
    positions = (local + N * np.arange(frames)[:, None]).reshape(rows, -1)
    confidences = np.where(padded, 0, 0.5).astype(np.float32).reshape(rows, -1)
    return AutoGazeGenerateOutput(
        gazing_pos=positions.astype(np.int64),
        if_padded_gazing=padded.reshape(rows, -1),
        num_gazing_each_frame=np.full(frames, slots, np.int64),
        confidences=confidences,
        task_loss_predictions=np.full(positions.shape, 0.8, np.float32),
        scale_layouts=layouts_from_grids(GRIDS),
    )


def decode(ids, padded=None, counts=None, layouts=None) -> AutoGazeGenerateOutput:
    """One row of ids, of full confidence unless padded."""
    positions = np.array([ids], np.int64)
    flags = np.zeros(positions.shape, bool) if padded is None else np.array([padded], bool)
    return AutoGazeGenerateOutput(
        gazing_pos=positions,
        if_padded_gazing=flags,
        num_gazing_each_frame=np.array(counts or [len(ids)], np.int64),
        confidences=np.where(flags, 0, 1).astype(np.float32),
        task_loss_predictions=np.zeros(positions.shape, np.float32),
        scale_layouts=layouts or layouts_from_grids(GRIDS),
    )


def response_for(generated: AutoGazeGenerateOutput, height: int, width: int) -> dict[str, np.ndarray]:
    frames = len(generated.num_gazing_each_frame)
    tensors = {
        "GAZING_POS": generated.gazing_pos,
        "IF_PADDED_GAZING": generated.if_padded_gazing,
        "NUM_GAZING_EACH_FRAME": generated.num_gazing_each_frame,
        "CONFIDENCES": generated.confidences,
        "TASK_LOSS_PREDICTIONS": generated.task_loss_predictions,
        "FIXATIONS": generated.fixations(0),
        "SOURCE_SIZE": np.array([frames, height, width], np.int32),
        "SCALE_GRIDS": np.array([layout.grid for layout in generated.scale_layouts], np.int32),
    }
    return {name: tensor[None] for name, tensor in tensors.items()}


class FakeServer:
    """A transport that records requests; those that ``fail_if`` picks fail.

    None is answered before ``hold_until`` are in flight at a time.
    """

    def __init__(self) -> None:
        self.requests: list[dict[str, np.ndarray]] = []
        self.timeouts: list[float | None] = []
        self.calls: list[CallOptions | None] = []
        self.fail_if = lambda inputs: False
        self.ready_after = 0
        self.closed = False
        self.in_flight = 0
        self.most_in_flight = 0
        self.hold_until = 0
        self.delay = threading.Event()
        self.delay_s = 0.02
        self._lock = threading.Condition()

    def infer(self, model, inputs, outputs: Iterable[str], timeout: float | None, call=None):
        with self._lock:
            self.requests.append(dict(inputs))
            self.calls.append(call)
            self.timeouts.append(timeout)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            self._lock.notify_all()
            # However slow the machine: the first requests are answered once so many have come.
            self._lock.wait_for(lambda: self.most_in_flight >= self.hold_until, timeout=60)
        self.delay.wait(self.delay_s)
        with self._lock:
            self.in_flight -= 1
        if self.fail_if(inputs):
            raise InferenceError("engine lost")
        frames = inputs["FRAMES"] if "FRAMES" in inputs else np.zeros((1, 5, 6, 8, 3), np.uint8)
        _, count, height, width, _ = frames.shape
        return response_for(generated_for(count, seed=int(frames.sum()) % 1000), height, width)

    def is_model_ready(self, model: str, timeout: float | None) -> bool:
        self.ready_after -= 1
        return self.ready_after < 0

    def statistics(self, timeout: float | None):
        count = len(self.requests)
        return (ModelStatistics("autogaze", count, count * 3_000_000, count * 1_000_000),)

    def close(self) -> None:
        self.closed = True


class AsyncFakeServer(FakeServer):
    """The same for the asyncio client."""

    async def infer(self, model, inputs, outputs, timeout, call=None):
        return await asyncio.to_thread(super().infer, model, inputs, outputs, timeout, call)

    async def is_model_ready(self, model, timeout):
        return super().is_model_ready(model, timeout)

    async def statistics(self, timeout):
        return super().statistics(timeout)

    async def close(self):
        super().close()
