"""Models unloaded and loaded again under load."""

from __future__ import annotations

import time

import numpy as np
import pytest
import tritonclient.grpc as triton
from autogaze_backend.serving import ModelControlMode, TritonServer
from autogaze_client import GazeClient, NotFoundError, ServerUnavailableError, StreamExpired
from faults.fault_helpers import KNOBS, LONG, Users, clip, config

pytestmark = pytest.mark.server


@pytest.mark.parametrize(
    ("times", "instances"), [(1, "1"), (1, "2"), pytest.param(5, "2", marks=pytest.mark.faults)]
)
def test_calls_during_an_unload_finish_or_are_told_and_later_ones_are_served(bundle, model, times, instances):
    models = ("autogaze", "autogaze_stream")
    settings = {"model_control_mode": ModelControlMode.EXPLICIT, "load_models": models}
    several = {"AUTOGAZE_CLIP_INSTANCES": instances}
    with TritonServer(config(bundle(), settings=settings, **several), on_log=lambda line: None) as server:
        server.wait_until_ready(LONG)
        with (
            Users(server.url, clips=2, streams=1) as users,
            triton.InferenceServerClient(server.url) as control,
        ):
            users.wait_until_served("clip", "frame")
            for _ in range(times):
                unloaded = time.monotonic()
                control.unload_model("autogaze", unload_dependents=True)
                control.unload_model("autogaze_stream")
                with GazeClient(server.url) as client:
                    assert not client.is_ready()
                    with pytest.raises((NotFoundError, ServerUnavailableError)):
                        client.gaze(clip(1), **KNOBS)
                control.load_model("autogaze")
                control.load_model("autogaze_stream")
                users.wait_until_served("clip", "frame", since=time.monotonic())
                assert any(outcome.began > unloaded for outcome in users.errors()), "nobody asked meanwhile"
    assert {type(outcome.error) for outcome in users.errors()} <= {
        NotFoundError,
        ServerUnavailableError,
        StreamExpired,
    }
    wanted = model().gaze(clip(4), **KNOBS).generated.gazing_pos
    for outcome in users.outcomes:
        if outcome.kind == "clip" and outcome.error is None:
            np.testing.assert_array_equal(outcome.tokens, wanted)
