"""A batch of requests as ``autogaze_generate`` serves it: what goes wrong with one stays with that one."""

from __future__ import annotations

import numpy as np
import pytest
from autogaze_backend import clips as service
from autogaze_backend.requests import Knobs
from autogaze_client import InvalidInputError
from goldens import clips


def request(seed: int, ratio: float = 0.05) -> dict[str, np.ndarray]:
    knobs = Knobs(gazing_ratio=np.array([ratio], np.float32))
    return {"FRAMES": clips.synthetic_clip(1, 64, 80, seed), **knobs.to_tensors()}


def serve(model, batch) -> dict[int, object]:
    return dict(service.generate_clips(model, batch, lambda index: False))


def test_a_bad_request_among_good_ones_gets_its_own_error(model):
    answers = serve(model(), [request(1), request(2, ratio=3.0), request(3)])
    assert isinstance(answers[1], InvalidInputError)
    for index, seed in ((0, 1), (2, 3)):
        (alone,) = serve(model(), [request(seed)]).values()
        np.testing.assert_array_equal(answers[index]["GAZING_POS"], alone["GAZING_POS"])


@pytest.mark.parametrize("stage", ["preprocessing", "finishing"])
def test_a_fault_in_one_request_leaves_the_others(stage, model, monkeypatch):
    """Not a refused value but a fault of ours: memory that runs out, or an output that cannot be made."""
    loaded = model()
    prepare, calls = service.prepare_clip, []

    def faulty(model, tensors):
        prepared = prepare(model, tensors)
        calls.append(prepared)
        if len(calls) != 2:
            return prepared

        def fail(*args):
            raise MemoryError("no room for this one")

        if stage == "finishing":
            return service.PreparedClip(prepared.rows, fail)
        row = prepared.rows[0]
        return service.PreparedClip((type(row)(row.frames, fail, row.budget),), prepared.finish)

    monkeypatch.setattr(service, "prepare_clip", faulty)
    answers = serve(loaded, [request(1), request(2), request(3)])
    assert isinstance(answers[1], MemoryError)
    assert isinstance(answers[0], dict)
    assert isinstance(answers[2], dict)
