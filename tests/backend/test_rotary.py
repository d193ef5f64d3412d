"""Rotary angles: upstream's to the last bit in a clip, exact beyond."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from autogaze_backend.rotary import ROUNDED_POSITIONS, RotaryTable, rotary_cos_sin, rotary_frequencies
from goldens import clips

# Of the published model as it is loaded (its rotary_emb.inv_freq, torch 2.13, transformers 4.51.3).
PUBLISHED = """
    0x1.0p+0 0x1.c2ef78p-2 0x1.8d276p-3 0x1.5dc95ap-4 0x1.34119p-5 0x1.0f5386p-6 0x1.ddee9ep-8 0x1.a4ee4p-9
    0x1.132ba4p-11 0x1.46831ap-14 0x1.1f91fp-15 0x1.fa8b86p-17 0x1.be2188p-18 0x1.88ec2p-19
    0x1.5a0f4ep-20 0x1.30c94ep-21
"""


@pytest.fixture
def spec(model):
    return model("release").spec


def test_frequencies_have_the_published_models_bits(spec):
    assert rotary_frequencies(spec).tolist() == [float.fromhex(bits) for bits in PUBLISHED.split()]


def test_angles_are_rounded_as_upstreams_in_a_clip_and_exact_beyond(spec):
    frequencies = rotary_frequencies(spec)
    near, far = ROUNDED_POSITIONS - 1, ROUNDED_POSITIONS
    cos, sin = rotary_cos_sin(spec, np.array([near, far]))
    rounded = (np.float32(near) * frequencies.astype(np.float32)).astype(np.float64)
    np.testing.assert_array_equal(cos[0], np.cos(rounded).astype(np.float32))
    np.testing.assert_array_equal(sin[1], np.sin(far * frequencies).astype(np.float32))
    # The rule matters where it ends: both ways differ there.
    assert (cos[0] != np.cos(near * frequencies).astype(np.float32)).any()


def test_the_table_holds_the_same_angles(spec):
    positions = np.array([0, 1, 3500, ROUNDED_POSITIONS - 1, ROUNDED_POSITIONS, 1_000_003])
    for found, expected in zip(RotaryTable(spec)(positions), rotary_cos_sin(spec, positions), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_choice_that_hangs_on_a_last_bit_is_the_published_models(model):
    """At the end of this clip two ids are 2e-4 apart; one wrong bit of a frequency swapped them."""
    video = clips.normalise(clips.synthetic_clip(16, 224, 224, 2037))[None]
    found = model("release").generate(video, gazing_ratio=0.75, task_loss_requirement=0.7)
    published = [40, 70, 60, 80, 150, 10, 30, 50, 70, 20, 20, 20, 30, 110, 20, 20]
    assert found.num_gazing_each_frame.tolist() == published
    assert found.gazing_pos[0, 760:768].tolist() == [3779, 3786, 3939, 3858, 3829, 3933, 3740, 3743]
    digest = hashlib.sha256(found.gazing_pos.astype("<i8").tobytes()).hexdigest()
    assert digest == "50dbb2e08e485dfee754d092f4732b92255e5d45818d88a3bb2efc6a73d1c50f"
