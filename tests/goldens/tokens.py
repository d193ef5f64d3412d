"""What a run must share with the published model's recorded one."""

from __future__ import annotations

from typing import Any

import numpy as np


def assert_golden(generated: Any, expected: Any) -> None:
    """Every id, every padding place and every frame's slots are the recorded ones."""
    np.testing.assert_array_equal(generated.gazing_pos, expected["gazing_pos"])
    np.testing.assert_array_equal(generated.if_padded_gazing, expected["if_padded_gazing"])
    np.testing.assert_array_equal(generated.num_gazing_each_frame, expected["num_gazing_each_frame"])
