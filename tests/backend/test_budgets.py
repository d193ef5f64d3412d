from __future__ import annotations

import numpy as np
import pytest
from autogaze_backend import ModelSpec
from autogaze_backend.budgets import resolve_budget
from autogaze_client import InvalidInputError
from goldens import checkpoint

SPEC = ModelSpec.from_config(checkpoint.config())


@pytest.mark.parametrize(("ratio", "tokens"), [(0.03, 7), (0.75, 198), (1, 265), (0.001, 1)])
def test_a_ratio_is_truncated_and_at_least_one_token(ratio, tokens):
    assert resolve_budget(SPEC, 1, gazing_ratio=ratio).max_tokens.tolist() == [tokens]


@pytest.mark.parametrize("tokens", [99, 197, 198])
def test_ratios_are_float32(tokens):
    """In float64 these lose a token (pipeline §5)."""
    assert resolve_budget(SPEC, 1, gazing_ratio=tokens / 265).max_tokens.tolist() == [tokens]


def test_a_cap_turns_the_stop_off():
    assert resolve_budget(SPEC, 2, gazing_ratio=0.1).requirement is None
    assert resolve_budget(SPEC, 2, max_gaze_tokens_each_frame=9).requirement is None


def test_a_requirement_alone_caps_at_all_tokens():
    budget = resolve_budget(SPEC, 2, task_loss_requirement=0.6)
    assert budget.max_tokens.tolist() == [265, 265]
    assert budget.requirement == 0.6


def test_neither_takes_the_checkpoints_defaults():
    budget = resolve_budget(SPEC, 1)
    assert budget.max_tokens.tolist() == [198]
    assert budget.requirement == 0.7


def test_no_default_is_an_error():
    config = checkpoint.config()
    config["gazing_ratio_config"]["sample_strategy_during_inference"] = "uniform"
    with pytest.raises(InvalidInputError, match="no fixed gazing ratio"):
        resolve_budget(ModelSpec.from_config(config), 1)


def test_of_two_caps_the_smaller_holds():
    budget = resolve_budget(SPEC, 2, gazing_ratio=[0.75, 0.03], max_gaze_tokens_each_frame=100)
    assert budget.max_tokens.tolist() == [100, 7]


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"gazing_ratio": 0}, r"gazing_ratio is 0; it must be above 0 and at most 1"),
        ({"gazing_ratio": 1.5}, "above 0 and at most 1"),
        ({"gazing_ratio": float("nan")}, "above 0 and at most 1"),
        ({"gazing_ratio": [0.5, 0.5]}, "2 values for 3 frames"),
        ({"task_loss_requirement": -0.1}, "finite and at least 0"),
        ({"task_loss_requirement": float("inf")}, "finite and at least 0"),
        ({"max_gaze_tokens_each_frame": 0}, "at least 1"),
        ({"max_gaze_tokens_each_frame": 2.5}, "whole numbers"),
        ({"max_gaze_tokens_each_frame": np.array([[1]])}, "1 values for 3 frames"),
    ],
)
def test_values_outside_their_range_are_refused(knobs, message):
    with pytest.raises(InvalidInputError, match=message):
        resolve_budget(SPEC, 3, **knobs)
