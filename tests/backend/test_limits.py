"""Every limit in one place: its default, its parameter in config.pbtxt, its variable, its row in the documentation."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from autogaze_backend.callers import ASK_SECONDS, Caller
from autogaze_backend.ingest import ingest
from autogaze_backend.limits import ClipLimits, IngestLimits, StreamLimits, read_limits, variable
from autogaze_client import DeadlineExceededError, InvalidInputError, RequestCancelledError
from video_helpers import tagged_video

ROOT = Path(__file__).parents[2]
# The limits that each served model reads.
READ = {
    "autogaze_ingest": (IngestLimits,),
    "autogaze_generate": (ClipLimits, IngestLimits),
    "autogaze_stream": (StreamLimits, IngestLimits),
}
# What a model takes no encoded video, or no clip, for.
NOT_ASKED = {
    "autogaze_ingest": set(),
    "autogaze_generate": {"max_video_bytes", "max_seconds"},
    "autogaze_stream": {"max_frames", "max_clip_bytes", "max_video_bytes", "max_seconds"},
}


def config(model: str) -> str:
    return (ROOT / "model_repository" / model / "config.pbtxt").read_text()


@pytest.mark.parametrize("model", READ)
def test_config_pbtxt_names_every_limit_of_its_model_with_the_default(model):
    found = dict(
        re.findall(r'parameters \{ key: "(\w+)" value \{ string_value: "([^"]*)" \} \}', config(model))
    )
    defaults = {
        field.name: field.default
        for kind in READ[model]
        for field in fields(kind)
        if field.name not in NOT_ASKED[model]
    }
    # Which engine runs is no limit.
    engine = {name: found.pop(name) for name in ("engine", "device") if name in found}
    assert engine == ({} if model == "autogaze_ingest" else {"engine": "auto", "device": "auto"})
    assert {name: float(value) for name, value in found.items()} == defaults


def test_the_documentation_has_a_row_for_every_limit():
    page = (ROOT / "docs" / "operations.md").read_text()
    for kind in (IngestLimits, ClipLimits, StreamLimits):
        for field in fields(kind):
            models = [
                model for model, kinds in READ.items() if kind in kinds and field.name not in NOT_ASKED[model]
            ]
            (row,) = [line for line in page.splitlines() if line.startswith(f"| `{field.name}`")]
            assert f"`{variable(field.name)}`" in row
            assert re.findall(r"`(autogaze_\w+)`", row) == models


@pytest.mark.parametrize("model", ["autogaze_ingest", "autogaze_generate"])
def test_every_queue_has_an_end_and_a_time(model):
    text = config(model)
    for setting in (
        "max_queue_size: 256",
        "timeout_action: REJECT",
        "default_timeout_microseconds: 60000000",
        "allow_timeout_override: true",
    ):
        assert text.count(setting) == 1


@pytest.mark.parametrize("kind", [IngestLimits, ClipLimits, StreamLimits])
def test_the_environment_wins_over_the_parameter_and_the_parameter_over_the_default(kind, monkeypatch):
    for field in fields(kind):
        default = field.default
        assert getattr(read_limits(kind, {}), field.name) == default
        assert getattr(read_limits(kind, {field.name: "7"}), field.name) == 7
        monkeypatch.setenv(variable(field.name), "9")
        assert getattr(read_limits(kind, {field.name: "7"}), field.name) == 9
        monkeypatch.delenv(variable(field.name))


@pytest.mark.parametrize("text", ["", "0", "-1", "nan", "inf", "many"])
def test_a_limit_that_is_no_number_above_0_is_refused(text):
    for kind, name in ((IngestLimits, "max_frames"), (ClipLimits, "max_wait_seconds")):
        with pytest.raises(
            InvalidInputError, match=f"limit {name} is {text!r}; .*set AUTOGAZE_{name.upper()}"
        ):
            read_limits(kind, {name: text})


def test_only_the_protection_of_streams_may_be_off():
    assert read_limits(StreamLimits, {"protect_seconds": "0"}).protect_seconds == 0
    with pytest.raises(InvalidInputError, match="at least 0"):
        read_limits(StreamLimits, {"protect_seconds": "-1"})
    with pytest.raises(InvalidInputError, match=r"protect_seconds is 9\.0 and ttl_seconds 5\.0"):
        read_limits(StreamLimits, {"protect_seconds": "9", "ttl_seconds": "5"})


def test_limits_that_tritons_sequence_batcher_would_undo_are_refused():
    StreamLimits(max_streams=512, ttl_seconds=119).check_sequences(512, 120)
    with pytest.raises(InvalidInputError, match=r"max_streams is 513.*512 sequences.*AUTOGAZE_MAX_STREAMS"):
        StreamLimits(max_streams=513).check_sequences(512, 120)
    with pytest.raises(
        InvalidInputError, match=r"ttl_seconds is 120, but .* after 120 s.*AUTOGAZE_TTL_SECONDS"
    ):
        StreamLimits(ttl_seconds=120).check_sequences(512, 120)


def test_too_many_bytes_of_video_are_refused_before_they_are_copied(monkeypatch):
    content = np.frombuffer(tagged_video(), np.uint8)

    class Uncopied(np.ndarray):
        def tobytes(self, order="C"):
            raise AssertionError("copied")

    with pytest.raises(
        InvalidInputError,
        match=rf"the video has {content.size} bytes; this server takes 99 \(max_video_bytes",
    ):
        ingest({"VIDEO": content.view(Uncopied)}, IngestLimits(max_video_bytes=99))
    assert ingest({"VIDEO": content}, IngestLimits(max_video_bytes=content.size))["DECODED"].shape[0] == 3


def test_decoding_stops_when_its_caller_goes_or_its_time_is_over():
    content = np.frombuffer(tagged_video(frames=50), np.uint8)
    seen = []

    def gone() -> bool:
        seen.append(len(seen))
        return len(seen) > 3

    ticks = iter(range(1000))
    caller = Caller(gone, clock=lambda: next(ticks))
    with pytest.raises(RequestCancelledError, match="after 3 decoded frames"):
        ingest({"VIDEO": content}, IngestLimits(), caller)
    ticks = iter(range(1000))
    caller = Caller(seconds=10, clock=lambda: next(ticks))
    with pytest.raises(DeadlineExceededError, match=r"10 s .* were over after 9 decoded frames"):
        ingest({"VIDEO": content}, IngestLimits(), caller)
    assert ingest({"VIDEO": content}, IngestLimits(), Caller())["DECODED"].shape[0] == 50


def test_triton_is_asked_about_a_caller_only_now_and_then():
    now = [0.0]
    asked = []
    caller = Caller(lambda: bool(asked.append(now[0])), clock=lambda: now[0])
    for step in range(1000):
        now[0] = step / 1000
        assert caller.lost() is None
    assert len(asked) == pytest.approx(1.0 / ASK_SECONDS, abs=1)
