"""The torch engine's way to its device and back; where there is no GPU, with stand-ins for CUDA's events."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the torch engine needs the extra 'torch'")

from autogaze_backend.torch_engine.device_queue import DeviceQueue  # noqa: E402
from autogaze_backend.torch_engine.engine import TorchEngine  # noqa: E402
from autogaze_backend.torch_engine.frame_encoder import row_buckets  # noqa: E402
from autogaze_backend.torch_engine.waiting import Waiting  # noqa: E402


class Event:
    """Of a device that is done at once."""

    def query(self) -> bool:
        return True

    def synchronize(self) -> None: ...

    def record(self, stream: object) -> None: ...


@pytest.fixture
def queue(monkeypatch) -> DeviceQueue:
    """On CUDA where there is one."""
    if torch.cuda.is_available():
        return DeviceQueue(torch.device("cuda"))
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory=False, **kinds: empty(*shape, **kinds))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    queue = DeviceQueue(torch.device("cpu"))
    queue.is_cuda = True
    return queue


def test_what_was_fetched_stays_when_its_buffer_is_used_again(queue):
    first, second = (torch.full((1, 40), value, device=queue.device) for value in (1.0, 2.0))
    with queue:
        found = queue.fetch(first, lambda array: array).wait()
        queue.fetch(second, lambda array: array).wait()
    assert found.tolist() == [[1.0] * 40]


@pytest.mark.parametrize("rows", [1, 2])
def test_the_record_of_a_row_is_its_own(queue, rows):
    """One row's arrays are contiguous in the record of the call, which is where a view hides."""
    state = SimpleNamespace(
        frame_counts=torch.full((4, 16), 5, dtype=torch.int32, device=queue.device),
        record=torch.zeros((4, 3, 40), dtype=torch.int32, device=queue.device),
    )
    for slot in range(4):
        state.record[slot, 1:] = torch.full((2, 40), float(slot)).view(torch.int32)
    engine = SimpleNamespace(
        _sizes=SimpleNamespace(window=16),
        _queue=queue,
        _state=state,
        _send_indices=lambda slots: torch.as_tensor(slots, device=queue.device),
    )
    records = [TorchEngine.collect(engine, np.arange(start, start + rows), 40).wait() for start in (0, rows)]
    for start, (_, _, confidences, losses) in zip((0, rows), records, strict=True):
        for array in (confidences, losses):
            assert array[:, 0].tolist() == list(range(start, start + rows))


@pytest.mark.parametrize("time", [1, 16])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 16, 20, 64, 100, 128, 255, 256, 300])
def test_every_number_of_rows_has_a_graph(time, rows):
    """Up to what a call takes, or to the largest graph: more rows are encoded in parts."""
    buckets = row_buckets(time, rows)
    assert buckets == sorted(set(buckets))
    assert buckets[-1] == min(rows, 256 if time == 1 else 16)
    assert buckets[0] == 1


@pytest.mark.parametrize("awake", [0.0, 10.0], ids=["in naps", "awake"])
def test_a_wait_ends_when_the_device_is_ready(awake):
    answers = iter([False] * 20 + [True])
    assert Waiting(awake).until(lambda: next(answers)) is True
    assert next(answers, None) is None, "nothing is asked once it is ready"


def test_a_wait_of_limited_patience_says_that_it_ended_before():
    assert Waiting().until(lambda: False, seconds=0.01) is False
    assert Waiting().until(lambda: True, seconds=0.0) is True


def test_a_long_wait_leaves_the_core_to_others():
    started = time.monotonic()
    used = time.process_time()
    Waiting(awake_seconds=0.01).until(lambda: time.monotonic() - started > 0.5)
    assert time.process_time() - used < 0.25
