"""What the runtime counts, without a server and as it is handed to one."""

from __future__ import annotations

import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from autogaze_backend.limits import StreamLimits
from autogaze_backend.metering import MeteredModel, count_streams
from autogaze_backend.metrics import METRICS, Meters, MetricKind
from autogaze_backend.publishing import TritonPublisher
from autogaze_backend.stream_pool import StreamPool
from autogaze_client import InvalidInputError, StreamExpired
from goldens import clips


def values(meters: Meters) -> dict[str, float]:
    return {
        " ".join([sample.name, *(f"{name}={value}" for name, value in sample.labels)]): sample.value
        for sample in meters.samples()
    }


def test_the_work_of_a_clip_is_counted(model):
    meters = Meters()
    metered = MeteredModel(model(), meters)
    frames = clips.synthetic_clip(3, 90, 160, 5)
    result = metered.gaze(frames, gazing_ratio=0.2)
    assert (
        result.tokens_per_frame.tolist() == model().gaze(frames, gazing_ratio=0.2).tokens_per_frame.tolist()
    )
    counted = values(meters)
    # 53 tokens a frame in groups of 10: the prefill chooses the first group, five steps the others.
    assert counted["autogaze_steps_total phase=encode"] == 1
    assert counted["autogaze_steps_total phase=prefill"] == 3
    assert counted["autogaze_steps_total phase=step"] == 15
    assert counted["autogaze_batch_rows_count phase=step"] == 15
    assert counted["autogaze_batch_rows_sum phase=step"] == 15
    assert counted["autogaze_stage_milliseconds_count stage=step"] == 15
    assert counted["autogaze_stage_milliseconds_count stage=preprocess"] == 1
    assert counted["autogaze_stage_milliseconds_sum stage=step"] > 0
    assert counted["autogaze_slots_in_use"] == 0


def test_slots_are_counted_while_they_are_open(model):
    meters = Meters()
    metered = MeteredModel(model(), meters)
    with metered.open_stream() as stream:
        frame = metered.preprocess(clips.synthetic_clip(1, 90, 160, 5))
        stream.step(frame, gazing_ratio=0.05)
        assert values(meters)["autogaze_slots_in_use"] == 1
    assert values(meters)["autogaze_slots_in_use"] == 0


def test_streams_that_were_given_up_are_counted_by_reason():
    class Stream:
        def close(self) -> None:
            pass

    now = [0.0]
    pool = StreamPool(Stream, StreamLimits(max_streams=2, ttl_seconds=10), clock=lambda: now[0])
    meters = Meters()
    count_streams(pool, meters)
    for stream_id in (1, 2, 3):
        pool.start(stream_id)
    assert values(meters)["autogaze_streams_open"] == 2
    now[0] = 11
    with pytest.raises(StreamExpired):
        pool.use(2)
    counted = values(meters)
    assert counted["autogaze_stream_evictions_total reason=evicted"] == 1
    assert counted["autogaze_stream_evictions_total reason=expired"] == 2
    assert counted["autogaze_streams_open"] == 0


def test_buckets_are_cumulative_and_a_bound_belongs_to_its_bucket():
    meters = Meters()
    for rows in (1, 2, 2, 3, 1000):
        meters.observe("autogaze_batch_rows", rows, phase="step")
    counted = values(meters)
    found = {
        bound: counted[f"autogaze_batch_rows_bucket le={bound} phase=step"]
        for bound in ("1", "2", "4", "+Inf")
    }
    assert found == {"1": 1, "2": 3, "4": 4, "+Inf": 5}
    assert counted["autogaze_batch_rows_sum phase=step"] == 1008


def test_a_page_for_prometheus():
    meters = Meters()
    meters.add("autogaze_requests_total", outcome="ok")
    meters.set("autogaze_slots_in_use", 3)
    assert meters.text().splitlines() == [
        "# HELP autogaze_requests_total Requests answered, by outcome",
        "# TYPE autogaze_requests_total counter",
        'autogaze_requests_total{outcome="ok"} 1',
        "# HELP autogaze_slots_in_use Cache slots that hold a row",
        "# TYPE autogaze_slots_in_use gauge",
        "autogaze_slots_in_use 3",
    ]


def test_large_counters_keep_their_last_digit():
    meters = Meters()
    meters.add("autogaze_tokens_total", 123_456_789)
    assert "autogaze_tokens_total 123456789\n" in meters.text()


def test_a_stage_that_fails_is_timed_too():
    meters = Meters()
    with pytest.raises(ZeroDivisionError), meters.stage("encode"):
        raise ZeroDivisionError
    assert values(meters)["autogaze_stage_milliseconds_count stage=encode"] == 1


@pytest.mark.parametrize(
    ("method", "arguments", "labels"),
    [
        ("add", ("autogaze_framse_total", 1), {}),
        ("add", ("autogaze_slots_in_use", 1), {}),
        ("add", ("autogaze_requests_total", 1), {}),
        ("set", ("autogaze_slots_in_use", 1), {"phase": "step"}),
        ("observe", ("autogaze_frames_total", 1), {}),
    ],
)
def test_a_metric_that_does_not_exist_is_refused(method, arguments, labels):
    with pytest.raises(InvalidInputError, match="METRICS"):
        getattr(Meters(), method)(*arguments, **labels)


def test_counters_do_not_go_back():
    meters = Meters()
    meters.total("autogaze_stream_evictions_total", 3, reason="expired")
    with pytest.raises(InvalidInputError, match="below 3"):
        meters.total("autogaze_stream_evictions_total", 2, reason="expired")
    with pytest.raises(InvalidInputError, match="0 or more"):
        meters.add("autogaze_frames_total", -1)


def test_nothing_is_lost_between_threads():
    meters = Meters()

    def work(_: int) -> None:
        for _ in range(1000):
            meters.add("autogaze_frames_total")
            meters.observe("autogaze_gaze_ratio", 0.3)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    counted = values(meters)
    assert counted["autogaze_frames_total"] == counted["autogaze_gaze_ratio_count"] == 4000
    assert counted["autogaze_gaze_ratio_sum"] == pytest.approx(1200)


class Stub:
    """As the stub's MetricFamily behaves: calls from any thread, counters that only grow, deletion with the handle."""

    def __init__(self) -> None:
        stub = self
        self.values: dict[tuple, float] = {}
        self.fail: Exception | None = None
        self.deleted: list[str] = []

        class Handle:
            def __del__(self) -> None:
                stub.deleted.append(type(self).__name__)

        class Family(Handle):
            COUNTER, GAUGE = "counter", "gauge"

            def __init__(self, name, description, kind):
                if stub.fail:
                    raise stub.fail
                self.name, self.kind = name, kind

            def Metric(self, labels):  # noqa: N802
                return Series((self.name, tuple(sorted(labels.items()))), self.kind)

        class Series(Handle):
            def __init__(self, key, kind):
                self.key, self.kind = key, kind
                stub.values.setdefault(key, 0.0)

            def increment(self, amount):
                assert amount != 0
                assert amount > 0 or self.kind == "gauge"
                stub.values[self.key] += amount

            def set(self, value):
                assert self.kind == "gauge"
                stub.values[self.key] = value

        self.MetricFamily = Family

    def get(self, name: str, **labels: str) -> float:
        return self.values[name, tuple(sorted({"model": "m", "version": "1", **labels}.items()))]


def test_a_recorder_counts_what_its_series_is_told_otherwise():
    told, recorded = Meters(), Meters()
    rows = recorded.recorder("autogaze_batch_rows", phase="step")
    frames = recorded.recorder("autogaze_frames_total")
    assert recorded.samples() == [], "nothing has been counted"
    for value, times in ((3, 1), (17, 4), (1e9, 2)):
        rows(value, times)
        for _ in range(times):
            told.observe("autogaze_batch_rows", value, phase="step")
    for amount in (1, 16):
        frames(amount)
        told.add("autogaze_frames_total", amount)
    recorded.recorder("autogaze_batch_rows", phase="step")(5)
    told.observe("autogaze_batch_rows", 5, phase="step")
    assert recorded.samples() == told.samples() != []


def test_a_recorder_of_what_is_not_there_is_refused():
    meters = Meters()
    for name, labels in (
        ("autogaze_no_such_metric", {}),
        ("autogaze_slots_in_use", {}),
        ("autogaze_batch_rows", {"stage": "step"}),
        ("autogaze_requests_total", {}),
    ):
        with pytest.raises(InvalidInputError, match=name):
            meters.recorder(name, **labels)
    with pytest.raises(InvalidInputError, match="a counter takes 0 or more"):
        meters.recorder("autogaze_frames_total")(-1)


def test_the_server_is_told_the_same_numbers():
    meters, stub = Meters(), Stub()
    publisher = TritonPublisher(meters, stub, {"model": "m", "version": "1"}, period=0.01)
    meters.add("autogaze_frames_total", 3)
    meters.observe("autogaze_gaze_ratio", 0.3)
    meters.set("autogaze_slots_in_use", 2)
    deadline = time.monotonic() + 10
    while not stub.values and time.monotonic() < deadline:
        time.sleep(0.005)
    meters.add("autogaze_frames_total", 4)
    meters.set("autogaze_slots_in_use", 0)
    publisher.close()
    assert stub.get("autogaze_frames_total") == 7
    assert stub.get("autogaze_slots_in_use") == 0
    assert stub.get("autogaze_gaze_ratio_bucket", le="0.3") == 1
    assert stub.get("autogaze_gaze_ratio_bucket", le="0.2") == 0
    assert stub.get("autogaze_gaze_ratio_count") == 1
    assert not [thread for thread in threading.enumerate() if thread.name == "autogaze-metrics"]


def test_what_other_models_share_is_never_deleted_and_gauges_end_at_zero():
    meters, stub = Meters(), Stub()
    publisher = TritonPublisher(meters, stub, {"model": "m", "version": "1"}, period=60)
    meters.set("autogaze_slots_in_use", 3)
    meters.add("autogaze_frames_total", 3)
    publisher.close()
    assert stub.get("autogaze_slots_in_use") == 0
    assert stub.get("autogaze_frames_total") == 3
    del publisher
    gc.collect()
    assert stub.deleted == []


def test_what_the_instances_of_a_model_hold_is_added_up():
    """They write to the same series; what runs them is the same in each."""
    stub = Stub()
    own = [Meters(), Meters()]
    info = {"engine": "torch", "precision": "exact", "engine_version": "2", "device": "cuda:0"}
    for meters, slots in zip(own, (3, 4), strict=True):
        meters.set("autogaze_slots_in_use", slots)
        meters.set("autogaze_engine_info", 1, **info)
    labels = {"model": "m", "version": "1"}
    first, second = (TritonPublisher(meters, stub, labels, period=60) for meters in own)
    first.publish()
    second.publish()
    assert stub.get("autogaze_slots_in_use") == 7
    assert stub.get("autogaze_engine_info", **info) == 1
    own[0].set("autogaze_slots_in_use", 1)
    first.publish()
    assert stub.get("autogaze_slots_in_use") == 5
    first.close()
    assert stub.get("autogaze_slots_in_use") == 4
    second.close()
    assert stub.get("autogaze_slots_in_use") == 0


def test_a_server_without_metrics_still_serves(caplog):
    stub = Stub()
    stub.fail = RuntimeError("metrics are disabled")
    meters = Meters()
    meters.add("autogaze_frames_total")
    TritonPublisher(meters, stub, {"model": "m", "version": "1"}, period=0.01).close()
    assert [record.message for record in caplog.records] == [
        "metrics are not published: metrics are disabled"
    ]


def test_every_metric_says_its_unit_in_its_name_or_help():
    for metric in METRICS.values():
        assert metric.name.startswith("autogaze_")
        assert metric.help
        assert (metric.kind is MetricKind.COUNTER) == metric.name.endswith("_total")
        assert list(metric.bounds) == sorted(metric.bounds)
        assert bool(metric.bounds) == (metric.kind is MetricKind.HISTOGRAM)
    assert np.isfinite([bound for metric in METRICS.values() for bound in metric.bounds]).all()
