"""Several clips at once in this process: each is what it is alone, and what is wrong with one is its own."""

from __future__ import annotations

import numpy as np
import pytest
from autogaze_backend.clips import gaze, gaze_clips
from autogaze_backend.requests import Knobs
from autogaze_client import InvalidInputError
from goldens import clips


def test_each_clip_is_what_it_is_alone(model):
    loaded, knobs = model(), Knobs(max_gaze_tokens=np.array([12]))
    several = [clips.synthetic_clip(frames, 64, 80, seed) for seed, frames in enumerate((1, 3, 1, 2))]
    several.insert(2, np.zeros((0, 64, 80, 3), np.uint8))
    found = gaze_clips(loaded, several, knobs)
    assert isinstance(found.pop(2), InvalidInputError)
    del several[2]
    for frames, result in zip(several, found, strict=True):
        alone = gaze(loaded, frames, knobs)
        np.testing.assert_array_equal(result.generated.gazing_pos, alone.generated.gazing_pos)
        np.testing.assert_array_equal(result.fixations, alone.fixations)
        assert result.generated.num_gazing_each_frame.tolist() == [12] * len(frames)


@pytest.mark.parametrize(
    "knobs", [Knobs(gazing_ratio=7.0), Knobs(gazing_ratio=np.array([0.1, 0.2]))], ids=["a rule", "a length"]
)
def test_knobs_that_do_not_fit_are_every_clips_error(model, knobs):
    several = [clips.synthetic_clip(3, 64, 64, seed) for seed in range(2)]
    found = gaze_clips(model(), several, knobs)
    assert [type(answer) for answer in found] == [InvalidInputError] * 2


def test_knobs_that_are_no_numbers_are_every_clips_error(model):
    found = gaze_clips(model(), [clips.synthetic_clip(1, 64, 64, 0)] * 2, Knobs(gazing_ratio="much"))
    assert [isinstance(answer, ValueError) for answer in found] == [True] * 2
