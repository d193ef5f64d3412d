"""The fast part of ``make soak``: seconds of it against a real server, and its rules on figures that break them."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.soak import Rules, judge, soak
from benchmarks.soak_load import Answer
from benchmarks.soak_watch import Sample

GOOD = [Answer("clip", at + 0.5, 10.0, True) for at in range(90)]
FLAT = [Sample(float(at), 400.0, 100.0, 50.0, 90, 20) for at in range(90)]
RULES = Rules()


RESTS = [Sample(float(at), 300.0, 100.0, 50.0, 90, 20) for at in range(0, 105, 15)]


def broken(
    answers: list[Answer], samples: list[Sample], rules: Rules = RULES, rests: list[Sample] = RESTS
) -> list[str]:
    findings = judge(answers, samples, rests, 0, 90, rules)
    return [finding.rule for finding in findings if finding.kept is False]


def late(**changes: float) -> list[Sample]:
    """The samples, other ones in the last third."""
    return [replace(sample, **changes) if sample.at >= 60 else sample for sample in FLAT]


def test_a_quiet_run_keeps_every_rule():
    assert broken(GOOD, FLAT) == []
    assert broken(GOOD, late(server_mib=400 + 8 + 15, server_handles=94)) == []


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"client_mib": 119.0}, "memory of the clients"),
        ({"shm_mib": 68.0}, "/dev/shm"),
        ({"server_handles": 95}, "file handles of the server"),
        ({"client_handles": 25}, "file handles of the clients"),
    ],
)
def test_growth_breaks_its_rule_and_no_other(changes, rule):
    (found,) = broken(GOOD, late(**changes))
    assert found.startswith(rule)


def test_memory_of_the_server_is_judged_by_its_rests():
    swinging = late(server_mib=600.0)
    assert broken(GOOD, swinging) == []
    risen = [*RESTS[:-2], *(replace(rest, server_mib=323.0) for rest in RESTS[-2:])]
    (found,) = broken(GOOD, FLAT, rests=risen)
    assert found.startswith("memory of the server at rest, MiB: at most 322")


def test_an_error_that_nobody_asked_for_breaks_a_rule_even_during_the_warm_up():
    early = Answer("frame", -5.0, 1.0, False, "frame: wanted an answer, got ...", timed=False)
    assert broken([*GOOD, early], FLAT) == ["errors that were not asked for"]


def test_slow_requests_at_the_end_break_a_rule_where_they_are_judged():
    slow = [replace(answer, milliseconds=12.1) if answer.at > 85 else answer for answer in GOOD]
    assert broken(slow, FLAT) == ["p99 of clip, ms"]
    assert broken(slow, FLAT, Rules(slower=None)) == []
    assert broken([replace(answer, milliseconds=11.9) for answer in slow], FLAT) == []
    assert broken([answer for answer in GOOD if answer.at < 60], FLAT) == [
        "p99 of clip: answers in both thirds"
    ]


@pytest.mark.server
def test_seconds_of_a_soak_keep_the_rules_that_do_not_depend_on_the_machines_speed(bundle):
    """Processes take a minute to reach their memory: here only a runaway shows, and `make soak` judges the rest."""
    rules = Rules(memory_mib=1024.0, handles=8, slower=None)
    findings, figures = soak(bundle("release"), 15.0, warm_up=6.0, rules=rules, parts=1, every=0.5, ttl=4)
    assert [finding for finding in findings if finding.kept is False] == [], figures
    assert figures["unexpected"] == []
    assert set(figures["requests"]) == {"clip", "frame", "bad"}
    assert {finding.rule.split(":")[0] for finding in findings} >= {
        "errors that were not asked for",
        "memory of the server at rest, MiB",
        "/dev/shm, MiB",
        "file handles of the server",
        "errors in the server's log",
    }
