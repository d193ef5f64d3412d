"""What the instances of one model share out."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from autogaze_backend.instances import InstanceShare
from autogaze_backend.limits import ClipLimits, StreamLimits
from autogaze_client import InvalidInputError


@pytest.mark.parametrize(
    ("groups", "count"), [(None, 1), ([], 1), ([{"count": 4}], 4), ([{}, {"count": 2}], 3)]
)
def test_an_instance_knows_how_many_there_are(groups, count):
    config = {} if groups is None else {"instance_group": groups}
    assert InstanceShare.of({"model_config": json.dumps(config)}) == InstanceShare(count)


def test_streams_are_shared_out_and_nothing_else_changes():
    limits = StreamLimits(max_streams=12, ttl_seconds=5, horizon=7)
    assert InstanceShare(4).of_limits(limits) == StreamLimits(max_streams=3, ttl_seconds=5, horizon=7)
    assert InstanceShare().of_limits(limits) == limits


def test_clips_are_shared_out_and_nothing_else_changes():
    limits = ClipLimits(max_active_clips=16, max_tiles=9, max_wait_seconds=3, max_run_seconds=4)
    assert InstanceShare(4).of_limits(limits) == replace(limits, max_active_clips=4)
    assert InstanceShare().of_limits(limits) == limits


def test_clips_that_cannot_be_shared_out_evenly_are_refused():
    rule = (
        r"max_active_clips is 16, but 3 .* AUTOGAZE_MAX_ACTIVE_CLIPS to a multiple of 3, or .*CLIP_INSTANCES"
    )
    with pytest.raises(InvalidInputError, match=rule):
        InstanceShare(3).of_limits(ClipLimits(max_active_clips=16))


@pytest.mark.parametrize("streams", [3, 6])
def test_streams_that_cannot_be_shared_out_evenly_are_refused(streams):
    with pytest.raises(InvalidInputError, match=rf"max_streams is {streams}, but 4 .* multiple of 4"):
        InstanceShare(4).of_limits(StreamLimits(max_streams=streams))


def test_memory_of_the_engine_is_shared_out():
    said = {"AUTOGAZE_CACHE_GIB": "20", "AUTOGAZE_SLOTS": "600", "AUTOGAZE_ROWS": "256"}
    assert InstanceShare(4).engine_environment(64, said) == {
        "AUTOGAZE_CACHE_GIB": "5.0",
        "AUTOGAZE_SLOTS": "150",
        "AUTOGAZE_ROWS": "150",
        "AUTOGAZE_AWAKE_MS": "0.2",
    }
    assert InstanceShare().engine_environment(64, said) == {}


def test_what_is_said_of_waiting_holds_for_every_instance():
    made = InstanceShare(2).engine_environment(0, {"AUTOGAZE_AWAKE_MS": "1.5"})
    assert made["AUTOGAZE_AWAKE_MS"] == "1.5"


def test_an_instance_has_slots_for_all_its_streams_and_some_more():
    said = {"AUTOGAZE_SLOTS": "16"}
    made = InstanceShare(4).engine_environment(64, said)
    assert int(made["AUTOGAZE_SLOTS"]) > 64


def test_clips_take_turns_on_the_slots_that_are_said():
    made = InstanceShare(4).engine_environment(0, {"AUTOGAZE_SLOTS": "16"})
    assert made["AUTOGAZE_SLOTS"] == "4"


def test_a_memory_that_is_no_number_is_refused():
    with pytest.raises(InvalidInputError, match="AUTOGAZE_CACHE_GIB is 'much'"):
        InstanceShare(2).engine_environment(0, {"AUTOGAZE_CACHE_GIB": "much"})


def test_processors_are_shared_out():
    assert InstanceShare().threads() is None
    assert InstanceShare(10_000).threads() == 1
