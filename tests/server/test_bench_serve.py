"""The fast part of ``make bench-serve``: the real perf_analyzer against the real server, each way once."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from autogaze_backend.serving import TritonServer, TritonServerConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import load_data
from benchmarks.perf_analyzer import PerfAnalyzer, UnusableError
from benchmarks.serve import QUICK, DataFiles, measure, repository


@pytest.fixture(scope="module")
def analyzer() -> PerfAnalyzer:
    try:
        return PerfAnalyzer.fetched()
    except UnusableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> DataFiles:
    return DataFiles.written(tmp_path_factory.mktemp("load"), QUICK)


def served(url: str) -> dict[str, int]:
    """Requests of each model that succeeded."""
    with triton.InferenceServerClient(url) as raw:
        stats = raw.get_inference_statistics(as_json=True)["model_stats"]
    return {entry["name"]: int(entry["inference_stats"]["success"].get("count", 0)) for entry in stats}


@pytest.mark.server
def test_every_way_of_loading_the_server_is_measured_by_perf_analyzer(bundle, analyzer, files, tmp_path):
    environment = {"AUTOGAZE_BUNDLE": str(bundle("release"))}
    config = TritonServerConfig(repository(tmp_path), 0, 0, 0, environment=environment)
    with TritonServer(config, on_log=lambda line: None) as server:
        server.wait_until_ready(120)
        _check_every_way(server, analyzer, files)


def _check_every_way(server: TritonServer, analyzer: PerfAnalyzer, files: DataFiles) -> None:
    before = served(server.url)
    rows = list(measure(server.url, analyzer, files, QUICK))
    after = served(server.url)
    assert [(row["load"], row["model"]) for row in rows] == [
        ("clips", "autogaze"),
        ("encoded clips", "autogaze"),
        ("clips at a rate", "autogaze"),
        ("streams", "autogaze_stream"),
        ("clips by wire", "autogaze_perf"),
        ("clips by shared memory", "autogaze_perf"),
    ]
    for row in rows:
        assert row["requests/s"] > 0
        assert 0 < row["p50, ms"] <= row["p90, ms"] <= row["p99, ms"]
    wanted = {"autogaze": 0, "autogaze_stream": 0, "autogaze_perf": 0}
    for row in rows:
        wanted[row["model"]] += row["requests"]
    wanted["autogaze_generate"] = wanted["autogaze"] + wanted["autogaze_perf"]
    for model, count in wanted.items():
        assert after[model] - before[model] >= count, f"{model} was asked less than the report says"


def test_the_data_files_hold_the_sample_video(files):
    (first, second) = json.loads(files.clips.read_text())["data"]
    assert first["FRAMES"]["shape"] == [2, 90, 160, 3]
    pictures = [
        np.frombuffer(base64.b64decode(entry["FRAMES"]["content"]["b64"]), np.uint8).reshape(2, 90, 160, 3)
        for entry in (first, second)
    ]
    for picture, clip in zip(pictures, load_data.sample_clips(2, 2, (160, 90)), strict=True):
        np.testing.assert_array_equal(picture, clip)
    assert not np.array_equal(*pictures)
    assert pictures[0].std() > 20
    streams = json.loads(files.streams.read_text())["data"]
    assert [len(stream) for stream in streams] == [2, 2]
    assert set(first) == {"FRAMES", *load_data.KNOBS}
