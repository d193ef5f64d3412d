"""The GPU benchmarks themselves, as far as they run without a GPU."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import benchmarks.gpu.sections as sections
from benchmarks.gpu.agreement import Agreement, judge
from benchmarks.gpu.context import QUICK_START, TINY, Settings, random_clips
from benchmarks.gpu.floor import clip_floor
from benchmarks.gpu.profiling import Activity, DeviceTime, by_name
from benchmarks.gpu.record import Record, Section
from benchmarks.gpu_server import perf_analyzer


def settings_in(folder: Path) -> Settings:
    return Settings("cpu", "onnxruntime", ("exact",), TINY, folder, None, None)


def test_the_floor_of_the_published_schedule(model):
    floor = clip_floor(model().spec, QUICK_START)
    assert (floor.prefills, floor.steps) == (16, 19)
    # 16 × 196 vision tokens, 19 groups fed by steps, and what each frame leaves to the next.
    assert floor.positions == 16 * 196 + 19 * 10 + 8 + 14 * 10
    giga = [round(value / 1e9, 1) for value in (floor.encoder, floor.linear, floor.attention)]
    assert giga == [7.4, 10.3, 18.5]
    # A quarter of the layers' work less, but for the last one's keys and values.
    assert 0.75 * 28.8 < floor.trimmed / 1e9 < 0.75 * 28.8 + 0.7


def test_the_floor_counts_what_a_token_by_token_run_does(model):
    spec = model().spec
    schedule = [23, 10, 4]
    cached = keys = fed = passes = 0
    pending = 0
    for tokens in schedule:
        groups = [min(spec.group_size, tokens - start) for start in range(0, tokens, spec.group_size)]
        for size in [pending + spec.vision_tokens, *groups[:-1]]:
            passes += 1
            for _ in range(size):
                cached, fed = cached + 1, fed + 1
                keys += cached
        pending = groups[-1]
    floor = clip_floor(spec, schedule)
    assert floor.prefills + floor.steps == passes
    assert floor.positions == fed
    assert floor.attention == 4 * spec.hidden_size * keys * spec.num_layers


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), min_size=1, max_size=12).map(
        lambda spans: [Activity("k", float(start), float(start + length)) for start, length in spans]
    )
)
def test_busy_and_idle_time_make_the_whole(activities):
    found = DeviceTime.of(activities)
    ticks = {tick for one in activities for tick in range(int(one.start), int(one.end))}
    whole = max(one.end for one in activities) - min(one.start for one in activities)
    assert found.busy == len(ticks)
    assert found.busy + found.gaps == whole
    assert 0 <= found.largest_gap <= found.gaps
    assert found.launches == len(activities)


def test_kernels_are_added_up_by_name():
    rows = by_name([Activity("a", 0, 1), Activity("b", 2, 9), Activity("a", 10, 12)])
    assert rows == [("b", 1, 7), ("a", 2, 3)]


def test_an_engine_agrees_with_its_own_history_and_not_with_another(model):
    loaded = model()
    videos = random_clips(2, 2, 5000)
    reference = loaded.generate(videos, max_gaze_tokens_each_frame=[25, 10])
    own = Agreement()
    judge(loaded.engine, videos, reference, own)
    row = own.row()
    assert (row["choices"], row["equal, %"]) == (70, 100.0)
    assert row["task loss error, max"] < 1e-5
    # The same tokens in another order are a history that nobody would have chosen.
    order = np.r_[24:-1:-1, 25:35]
    swapped = replace(reference, gazing_pos=reference.gazing_pos[:, order])
    other = Agreement()
    judge(loaded.engine, videos, swapped, other)
    assert other.row()["equal, %"] < 90
    assert other.row()["largest logit gap"] > 0.1


@pytest.mark.parametrize(
    ("kind", "state", "rows", "said"),
    [
        ("ends", "done", 2, ""),
        ("raises", "failed", 1, "ValueError: on purpose"),
        ("dies", "failed", 1, "status 3"),
    ],
)
def test_a_section_keeps_what_it_measured_however_it_ends(kind, state, rows, said, tmp_path):
    section = Section("broken")
    record = Record(tmp_path / "gpu.json", [section])
    folder = tmp_path / kind
    folder.mkdir()
    sections.run_section(section, "gpu.broken_sections", settings_in(folder), 120.0, record)
    part = json.loads((tmp_path / "gpu.json").read_text())["sections"]["broken"]
    assert part["state"] == state
    assert len(part["rows"]) == rows
    assert said in part.get("error", "")
    assert "first" in record.tables()
    assert said in record.tables()


def test_a_section_that_hangs_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(sections, "GRACE", 1.0)
    section = Section("broken")
    record = Record(tmp_path / "gpu.json", [section])
    folder = tmp_path / "hangs"
    folder.mkdir()
    sections.run_section(section, "gpu.broken_sections", settings_in(folder), 1.0, record)
    assert section.state == "failed"
    assert "it had 1 s" in str(section.error)


def test_a_failed_section_does_not_stop_the_next(tmp_path):
    folder = tmp_path / "raises"
    folder.mkdir()
    plan = sections.Plan({"one": "gpu.broken_sections", "two": "gpu.broken_sections"}, {"one": 1, "two": 1})
    record = Record(tmp_path / "gpu.json", [Section("one"), Section("two")])
    plan.run(record, settings_in(folder), minutes=1)
    assert [(section.state, len(section.rows)) for section in record.sections] == [("failed", 1)] * 2


def test_a_dropped_frame_came_after_the_next_but_one_was_due():
    pytest.importorskip("tritonclient.grpc", reason="the cameras use the client")
    from benchmarks.gpu_server.cameras import RATE, Outcome

    late = np.array([0.01, 2 / RATE - 1e-6, 2 / RATE + 1e-6, 0.5])
    outcome = Outcome.joined([Outcome(late, np.zeros(4), 3, 1.5), Outcome(late[:1], np.zeros(1), 0, 0.5)])
    assert (outcome.frames, outcome.dropped) == (8, 5)
    row = outcome.row(1.0)
    assert (row["frames due"], row["dropped"], row["answered/s"]) == (8, 5, 5.0)


def test_perf_analyzers_ensemble_has_two_inputs_and_the_shipped_steps(tmp_path):
    from autogaze_backend.serving import model_repository_path

    repository = tmp_path / "repository"
    shutil.copytree(model_repository_path(), repository)
    perf_analyzer.add_ensemble(repository)
    shipped = (repository / "autogaze" / "config.pbtxt").read_text()
    text = (repository / perf_analyzer.MODEL / "config.pbtxt").read_text()
    declared = text.split("input [")[1].split("]\n")[0]
    assert re.findall(r'name: "(\w+)"', declared) == ["FRAMES", "MAX_GAZE_TOKENS"]
    assert "optional" not in text
    assert f'name: "{perf_analyzer.MODEL}"' in text
    # The steps lose only what nobody sends.
    lost = set(shipped.split("ensemble_scheduling {")[1].splitlines()) - set(text.splitlines())
    assert {line.split('"')[1] for line in lost if line.strip()} == {
        "VIDEO",
        "MODE",
        "GAZING_RATIO",
        "TASK_LOSS_REQUIREMENT",
        "TOP_K",
        "TARGET_SCALES",
        "TARGET_PATCH_SIZE",
    }


def test_perf_analyzers_report_is_read_in_milliseconds():
    text = (
        "Concurrency,Inferences/Second,Client Send,p50 latency,p90 latency,p95 latency,p99 latency\n"
        "4,250.5,12,15000,16000,17000,18000\n"
    )
    row = perf_analyzer.read_report(text)
    assert (row.concurrency, row.requests_per_s, row.p50_ms, row.p99_ms) == (4, 250.5, 15.0, 18.0)
