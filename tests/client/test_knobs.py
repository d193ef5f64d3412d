"""The client and the model accept and refuse the same knobs, in the same words."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from autogaze_backend import ModelSpec
from autogaze_backend.budgets import resolve_budget
from autogaze_backend.preprocessing import check_frames
from autogaze_client import InvalidInputError
from autogaze_client._wire import GazeOptions, clip_tensors
from goldens import checkpoint

SPEC = ModelSpec.from_config(checkpoint.config())
CLIP = np.zeros((3, 2, 2, 3), np.uint8)
RATIO, TOKENS, REQUIREMENT = "gazing_ratio", "max_gaze_tokens_each_frame", "task_loss_requirement"


def words(function) -> str:
    with pytest.raises(InvalidInputError) as caught:
        function()
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in (RATIO, TOKENS) for value in (True, "1", b"1", [], [1], [1, 1], {1, 2, 3})),
        *((name, value) for name in (RATIO, TOKENS) for value in ([[1], [1], [1]], np.ones((3, 1)))),
        *((name, [1, bad, 1]) for name in (RATIO, TOKENS) for bad in (True, "1", None, 0, -1, float("nan"))),
        (RATIO, 1.5),
        (RATIO, 1e-60),
        (TOKENS, 1.0),
        (TOKENS, 2**31),
        (TOKENS, np.array([True, True, True])),
        *((REQUIREMENT, value) for value in (True, "0.7", [0.7], -0.1, 1e39, float("nan"), np.ones(1))),
    ],
)  # fmt: skip
def test_both_sides_refuse_in_the_same_words(name, value):
    ours = words(lambda: clip_tensors(CLIP, GazeOptions(**{name: value})))
    theirs = words(lambda: resolve_budget(SPEC, 3, **{name: value}))
    # Without the clip the client does not know how many frames there are.
    assert ours == theirs or ours == theirs.replace(" for 3 frames", "")
    assert ours.startswith(name)


@pytest.mark.parametrize(
    ("name", "value", "caps"),
    [
        (RATIO, 0.1, [26, 26, 26]),
        (RATIO, Fraction(1, 10), [26, 26, 26]),
        (RATIO, np.float32(0.1), [26, 26, 26]),
        (RATIO, np.array(0.1), [26, 26, 26]),
        (RATIO, np.array([0.1]), [26, 26, 26]),
        (RATIO, (0.1, 1, 0.5), [26, 265, 132]),
        (TOKENS, np.int64(9), [9, 9, 9]),
        (TOKENS, np.array([9]), [9, 9, 9]),
        (TOKENS, range(1, 4), [1, 2, 3]),
        (TOKENS, np.array([1, 2, 3], np.uint8), [1, 2, 3]),
    ],
)
def test_both_sides_accept_the_same(name, value, caps):
    """What the client sends gives the budget that the model gives for the same argument."""
    assert resolve_budget(SPEC, 3, **{name: value}).max_tokens.tolist() == caps
    wire = {RATIO: "GAZING_RATIO", TOKENS: "MAX_GAZE_TOKENS"}[name]
    sent = clip_tensors(CLIP, GazeOptions(**{name: value}))[wire][0]
    assert resolve_budget(SPEC, 3, **{name: sent}).max_tokens.tolist() == caps


@pytest.mark.parametrize("name", [RATIO, TOKENS])
def test_a_list_of_one_is_for_a_clip_of_one_frame(name):
    assert len(resolve_budget(SPEC, 1, **{name: [1]}).max_tokens) == 1
    assert clip_tensors(CLIP[:1], GazeOptions(**{name: [1]}))
    message = words(lambda: resolve_budget(SPEC, 3, **{name: [1]}))
    assert message.startswith(f"{name} has 1 values for 3 frames; pass one value, or one for each frame")


@pytest.mark.parametrize("frames", [CLIP[0], CLIP[..., :2], CLIP[:0], CLIP.astype(float)])
def test_frames_have_one_rule(frames):
    assert words(lambda: check_frames(frames)) == words(lambda: clip_tensors(frames, GazeOptions()))
