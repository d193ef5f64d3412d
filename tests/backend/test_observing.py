"""Requests of a served model: how they are counted and logged."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass

import numpy as np
import pytest
from autogaze_backend.logs import configure_logging
from autogaze_backend.metrics import Meters
from autogaze_backend.observing import Observer
from autogaze_client import (
    DeadlineExceededError,
    InvalidInputError,
    RequestCancelledError,
    ServerUnavailableError,
    StreamExpired,
)


@dataclass
class Request:
    label: str = ""
    correlation: int = 0

    def request_id(self) -> str:
        return self.label

    def correlation_id(self) -> int:
        return self.correlation


# Two rows of three frames with two slots each; one slot of each row holds nothing.
OUTPUTS = {
    "GAZING_POS": np.zeros((2, 6), np.int64),
    "IF_PADDED_GAZING": np.array([[0, 0, 0, 0, 0, 1]] * 2, bool),
    "NUM_GAZING_EACH_FRAME": np.array([2, 2, 2]),
    "SCALE_GRIDS": np.array([2, 4, 7, 14], np.int32),
}


@pytest.fixture
def log(capsys):
    """Configures the log of a format; gives a function that reads what was written."""
    logger = logging.getLogger("autogaze")
    before = logger.handlers[:], logger.level, logger.propagate

    def start(**variables: str):
        configure_logging(variables)
        return lambda: capsys.readouterr().err.splitlines()

    yield start
    logger.handlers[:], logger.level, logger.propagate = before


def counted(meters: Meters) -> dict[str, float]:
    return {
        sample.name + "".join(f" {value}" for _, value in sample.labels): sample.value
        for sample in meters.samples()
    }


def test_a_served_request_counts_its_frames_and_tokens():
    meters = Meters()
    Observer("m", "1", meters).begin(Request())(OUTPUTS)
    found = counted(meters)
    assert found["autogaze_requests_total ok"] == 1
    assert found["autogaze_frames_total"] == 3
    assert found["autogaze_tokens_total"] == 10
    assert found["autogaze_tokens_per_frame_sum"] == pytest.approx(10 / 6)
    assert found["autogaze_gaze_ratio_sum"] == pytest.approx(10 / 6 / 265)


def test_a_request_that_only_ends_a_stream_has_no_ratio():
    meters = Meters()
    nothing = {
        **OUTPUTS,
        "IF_PADDED_GAZING": np.zeros((1, 0), bool),
        "NUM_GAZING_EACH_FRAME": np.zeros(0, np.int64),
    }
    Observer("m", "1", meters).begin(Request())(nothing)
    assert "autogaze_gaze_ratio_count" not in counted(meters)


def test_a_stage_of_one_model_is_the_whole_request():
    meters = Meters()
    finish = Observer("m", "1", meters, stage="decode").begin(Request())
    finish({"FIXATIONS": np.zeros((0, 7), np.float32)})
    found = counted(meters)
    assert found["autogaze_stage_milliseconds_count decode"] == 1
    assert "autogaze_frames_total" not in found


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (InvalidInputError("a"), "invalid"),
        (StreamExpired("a"), "not_found"),
        (ServerUnavailableError("a"), "unavailable"),
        (DeadlineExceededError("a"), "unavailable"),
        (RequestCancelledError("a"), "cancelled"),
        (KeyError("a"), "internal"),
    ],
)
def test_every_failure_has_its_outcome(error, outcome):
    meters = Meters()
    Observer("m", "1", meters).begin(Request())(error)
    assert counted(meters) == {f"autogaze_requests_total {outcome}": 1}


def test_json_lines_hold_the_request(log):
    read = log(AUTOGAZE_LOG_FORMAT="json")
    observer = Observer("autogaze_generate", "2", Meters(), each_request=True)
    observer.begin(Request("order-7"))(OUTPUTS)
    observer.begin(Request("door-1", 99))(InvalidInputError("frames of 2×9000"))
    try:
        raise ZeroDivisionError("secret")
    except ZeroDivisionError as error:
        observer.begin(Request("order-8"))(error)
    lines = read()
    assert all(line.isascii() for line in lines), "standard error may know no other characters"
    served, refused, failed = (json.loads(line) for line in lines)
    assert served.pop("milliseconds") >= 0
    assert served.pop("time").endswith("Z")
    assert served == {
        "level": "info",
        "logger": "autogaze.requests",
        "message": "request served",
        "model": "autogaze_generate",
        "version": "2",
        "request_id": "order-7",
        "outcome": "ok",
        "frames": 3,
        "tokens": 10,
    }
    assert (refused["request_id"], refused["correlation_id"], refused["outcome"]) == ("door-1", 99, "invalid")
    assert refused["message"] == "request refused: frames of 2×9000"
    assert (failed["level"], failed["request_id"]) == ("error", "order-8")
    assert "ZeroDivisionError: secret" in failed["traceback"]


def test_plain_lines_say_only_what_needs_attention(log):
    read = log()
    observer = Observer("autogaze_generate", "2", Meters())
    observer.begin(Request("a"))(OUTPUTS)
    observer.begin(Request("b"))(InvalidInputError("gazing_ratio is 7"))
    observer.begin(Request("c"))(RequestCancelledError("the caller cancelled"))
    observer.begin(Request("d"))(KeyError("lost"))
    lines = read()
    assert lines[0] == "WARNING autogaze_generate c: the caller cancelled"
    assert lines[1] == "ERROR autogaze_generate d: a request failed"
    assert lines[-1] == "KeyError: 'lost'"


def test_a_level_quietens_the_log(log):
    read = log(AUTOGAZE_LOG_FORMAT="json", AUTOGAZE_LOG_LEVEL="warning")
    Observer("m", "1", Meters(), each_request=True).begin(Request())(OUTPUTS)
    assert read() == []


@pytest.mark.parametrize(("name", "value"), [("AUTOGAZE_LOG_FORMAT", "xml"), ("AUTOGAZE_LOG_LEVEL", "loud")])
def test_an_unknown_setting_is_refused(name, value):
    with pytest.raises(InvalidInputError, match=f"{name} is"):
        configure_logging({name: value})
