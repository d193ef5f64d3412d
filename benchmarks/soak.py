"""``make soak``: minutes of clips, streams and bad requests together against the real server, and the rules they keep.

No error that was not asked for; memory and file handles flat; the slowest of a hundred requests at the end within
20 % of the start. The last third is compared with the first, after a warm-up.

Under load the server's memory swings with the streams that happen to be open, by more than a leak of minutes would
show. So the load rests several times until every stream is forgotten, and these rests judge the server's memory.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from autogaze_backend.serving import TritonServer, TritonServerConfig, model_repository_path
from autogaze_export import build

from benchmarks.report import table, write
from benchmarks.soak_load import Answer, Load
from benchmarks.soak_watch import Sample, Watch

# After which a stream that its camera left is forgotten, on the server that is soaked; and how much longer a rest is.
TTL_SECONDS = 10
_REST_OVER_TTL = 1.5

RESULT = Path("benchmarks") / "results" / "cpu-soak.json"


@dataclass(frozen=True)
class Rules:
    """What counts as flat.

    Attributes:
        memory_share: that memory may grow, from the mean of the first third to that of the last.
        memory_mib: that it may grow in any case: allocators round.
        handles: file handles that the last third may have more than the first.
        slower: that the 99th percentile may grow, as a share; None does not judge it.
    """

    memory_share: float = 0.02
    memory_mib: float = 16.0
    handles: int = 4
    slower: float | None = 0.2


@dataclass(frozen=True)
class Finding:
    """One rule and what was measured.

    Attributes:
        rule: in words.
        first: in the first third.
        last: in the last third.
        kept: whether the rule is; None where it was not judged.
    """

    rule: str
    first: float
    last: float
    kept: bool | None


def judge(
    answers: Sequence[Answer],
    samples: Sequence[Sample],
    rests: Sequence[Sample],
    start: float,
    end: float,
    rules: Rules,
) -> list[Finding]:
    """Compares the last third of the time from ``start`` to ``end`` with the first, and of the rests likewise."""
    third = (end - start) / 3

    def part(at: float) -> int:
        return int((at - start) // third) if start <= at < end else -1

    findings = []
    unasked = [answer for answer in answers if not answer.expected]
    findings.append(Finding("errors that were not asked for", 0, len(unasked), not unasked))
    some = max(1, len(rests) // 3)
    first, last = (
        float(np.mean([rest.server_mib for rest in rests_of])) for rests_of in (rests[:some], rests[-some:])
    )
    most = first * (1 + rules.memory_share) + rules.memory_mib
    findings.append(
        Finding(
            f"memory of the server at rest, MiB: at most {most:.0f} at the end", first, last, last <= most
        )
    )
    first, last = (float(np.mean([s.server_mib for s in samples if part(s.at) == index])) for index in (0, 2))
    findings.append(Finding("memory of the server under load, MiB: with the streams open", first, last, None))
    for what, value in (
        ("memory of the clients, MiB", lambda sample: sample.client_mib),
        ("/dev/shm, MiB", lambda sample: sample.shm_mib),
    ):
        first, last = (float(np.mean([value(s) for s in samples if part(s.at) == index])) for index in (0, 2))
        most = first * (1 + rules.memory_share) + rules.memory_mib
        findings.append(Finding(f"{what}: at most {most:.0f} at the end", first, last, last <= most))
    for what, count in (
        ("file handles of the server", lambda sample: sample.server_handles),
        ("file handles of the clients", lambda sample: sample.client_handles),
    ):
        first, last = (
            float(np.median([count(s) for s in samples if part(s.at) == index])) for index in (0, 2)
        )
        most = first + rules.handles
        findings.append(Finding(f"{what}: at most {most:.0f} at the end", first, last, last <= most))
    for kind in sorted({answer.kind for answer in answers if answer.timed}):
        timed = [answer for answer in answers if answer.kind == kind and answer.timed]
        times = [[answer.milliseconds for answer in timed if part(answer.at) == index] for index in (0, 2)]
        if not all(times):
            kept = None if rules.slower is None else False
            rule = f"p99 of {kind}: answers in both thirds"
            findings.append(Finding(rule, len(times[0]), len(times[1]), kept))
            continue
        first, last = (float(np.percentile(values, 99)) for values in times)
        kept = None if rules.slower is None else last <= first * (1 + rules.slower)
        findings.append(Finding(f"p99 of {kind}, ms", first, last, kept))
    return findings


def soak(
    bundle: Path,
    seconds: float,
    *,
    warm_up: float,
    rules: Rules,
    parts: int = 6,
    every: float = 2.0,
    ttl: int = TTL_SECONDS,
) -> tuple[list[Finding], dict[str, Any]]:
    """Loads a server of its own and judges it.

    Args:
        bundle: to serve.
        seconds: of load after the warm-up.
        warm_up: seconds of load before anything counts but errors.
        rules: what must hold.
        parts: of the load, with a rest before and after each.
        every: seconds between two looks at the processes.
        ttl: seconds after which the server forgets a stream.

    Returns:
        The findings, and figures for the report.
    """
    environment = {
        "AUTOGAZE_BUNDLE": str(bundle),
        "AUTOGAZE_MAX_FRAMES": "64",
        "AUTOGAZE_TTL_SECONDS": str(ttl),
    }
    config = TritonServerConfig(model_repository_path(), 0, 0, 0, environment=environment)
    log: list[str] = []
    with TritonServer(config, on_log=log.append) as server:
        server.wait_until_ready(120)
        # At its start a server without a GPU says so as an error.
        log.clear()
        with Load(server.url) as load, Watch(server.name, every) as watch:
            load.run(warm_up)
            rests = [_rest(load, watch, ttl)]
            start = time.monotonic()
            for _ in range(parts):
                load.run(seconds / parts)
                rests.append(_rest(load, watch, ttl))
            end = time.monotonic()
            lines = list(log)
        answers, samples = load.answers, watch.samples
    findings = judge(answers, samples, rests, start, end, rules)
    errors = [line for line in lines if line[:1] == "E" and line[1:5].isdigit()]
    findings.append(Finding("errors in the server's log", 0, len(errors), not errors))
    counts: dict[str, int] = {}
    for answer in answers:
        counts[answer.kind] = counts.get(answer.kind, 0) + 1
    figures = {
        "seconds": round(end - start, 1),
        "warm-up seconds": warm_up,
        "requests": counts,
        "unexpected": [answer.what for answer in answers if not answer.expected][:20],
        "log errors": errors[:20],
        "rests": [asdict(rest) for rest in rests],
        "samples": [asdict(sample) for sample in samples[:: max(1, len(samples) // 100)]],
    }
    return findings, figures


def _rest(load: Load, watch: Watch, ttl: int) -> Sample:
    """Waits until the server has forgotten every stream, and looks at it."""
    load.end_streams()
    time.sleep(ttl * _REST_OVER_TTL)
    return watch.look()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs it, prints the table, writes the JSON; 1 where a rule is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=15.0, help="warm-up and rests included; default: %(default)s"
    )
    parser.add_argument("--out", type=Path, default=RESULT, help="default: %(default)s")
    parser.add_argument("--checkpoint", default="open", help="default: the one that comes with the project")
    options = parser.parse_args(arguments)
    if not options.minutes > 0:
        parser.error(f"--minutes is {options.minutes}; it must be above 0")
    seconds = options.minutes * 60
    busy = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        bundle = build(options.checkpoint, Path(folder) / "bundle")
        # The processes take a minute to reach the memory that they then keep (tried).
        warm_up = min(90.0, seconds / 2)
        parts = 6 if seconds >= 300 else 1
        load = max(1.0, seconds - warm_up - (parts + 1) * TTL_SECONDS * _REST_OVER_TTL)
        findings, figures = soak(bundle, load, warm_up=warm_up, rules=Rules(), parts=parts)
    rows = [asdict(finding) for finding in findings]
    write(options.out, "soak", rows)
    content = json.loads(options.out.read_text())
    content["machine"]["load_average_before"] = round(busy, 2)
    content["soak"] = figures
    options.out.write_text(json.dumps(content, indent=2) + "\n")
    print(table(rows))
    print(f"{figures['requests']} in {figures['seconds']} s; wrote {options.out}")
    for what in (*figures["unexpected"], *figures["log errors"]):
        print(f"not asked for: {what}")
    broken = [finding.rule for finding in findings if finding.kept is False]
    print(f"broken: {'; '.join(broken)}" if broken else "every rule is kept")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
