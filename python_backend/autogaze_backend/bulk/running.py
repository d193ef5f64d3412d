"""Runs a job: finds what is missing, lets Ray Data's actors do it, and reports."""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data
from autogaze_client._errors import AutoGazeError, InferenceError
from ray.exceptions import RayError

from autogaze_backend.budgets import resolve_budget
from autogaze_backend.bulk.inputs import VideoFile, find_videos
from autogaze_backend.bulk.job import (
    BulkJob,
    Node,
    WorkerPlan,
    gpus_here,
    plan_on_cluster,
    plan_on_this_machine,
)
from autogaze_backend.bulk.output import OutputFolder
from autogaze_backend.bulk.progress import Tally, run_progress
from autogaze_backend.bulk.report import (
    BulkSummary,
    Outcome,
    Status,
    read_errors,
    write_errors,
    write_summary,
)
from autogaze_backend.bulk.settings import RunIdentity
from autogaze_backend.bulk.worker import GazeWorker
from autogaze_backend.bundle import Bundle

# Blocks are what Ray Data hands out; each costs the driver a little.
_MAX_BLOCKS = 4096
# The report is rewritten whole, so not for every error.
_REPORT_SECONDS = 30.0
_FOOTER_READERS = 16
_TALLY_SECONDS = 10.0

_log = logging.getLogger(__name__)


def run_bulk(job: BulkJob, *, progress: bool = False) -> BulkSummary:
    """Gazes at every video of a folder that has no result yet.

    Args:
        job: what to do.
        progress: draw a progress bar, where rich is installed.

    Returns:
        The counts. Videos that could not be gazed at are in ``errors.parquet``, not raised.

    Raises:
        NotFoundError: the folder or the bundle does not exist.
        InvalidInputError: there are no videos, a knob breaks its rule, the output folder is in use or holds
            results of other settings, or no machine can hold an actor.
        CheckpointError: the bundle is damaged.
        InferenceError: the actors cannot start, because the bundle is another one on their machine for instance, or
            Ray failed. What was finished stays, and the next run goes on.
        MissingExtraError: a package of the extra ``bulk`` or ``server`` is missing.
    """
    started = time.perf_counter()
    job = replace(
        job, source=job.source.absolute(), out=job.out.absolute(), bundle=job.bundle.expanduser().absolute()
    )
    bundle = Bundle.load(job.bundle)
    identity = RunIdentity.of(job.settings, bundle)
    resolve_budget(
        bundle.spec,
        1,
        gazing_ratio=job.settings.gazing_ratio,
        task_loss_requirement=job.settings.task_loss_requirement,
        max_gaze_tokens_each_frame=job.settings.max_gaze_tokens,
    )
    root, videos = find_videos(job.source, job.patterns)
    folder = OutputFolder(job.out)
    with folder.locked(identity):
        done_before = _finished(folder, videos, identity)
        errors = _known_errors(folder, job, videos)
        for video in videos:
            if not video.is_text:
                errors[video] = Outcome(
                    video, Status.UNREADABLE, "its name is no UTF-8, which Parquet cannot hold; rename it"
                )
        todo = [video for video in videos if video not in done_before and video not in errors]
        done: list[Outcome] = []
        plan = WorkerPlan(0, 0, 0, 0, 0)
        try:
            if todo:
                with _ray(job, len(todo)) as plan:
                    _run(job, root, folder, identity, plan, todo, done, errors, progress)
        finally:
            write_errors(folder, errors.values())
        summary = BulkSummary(
            videos=len(videos),
            done_before=len(done_before),
            done=len(done),
            unreadable=sum(outcome.status is Status.UNREADABLE for outcome in errors.values()),
            failed=sum(outcome.status is Status.FAILED for outcome in errors.values()),
            interrupted=len(list(folder.parts.iterdir())),
            frames=sum(outcome.frames for outcome in done),
            tokens=sum(outcome.tokens for outcome in done),
            seconds=time.perf_counter() - started,
            actors=plan.actors,
            threads=plan.threads,
            device=job.device,
        )
        write_summary(folder, summary)
    return summary


def _run(
    job: BulkJob,
    root: Path,
    folder: OutputFolder,
    identity: RunIdentity,
    plan: WorkerPlan,
    todo: Sequence[VideoFile],
    done: list[Outcome],
    errors: dict[VideoFile, Outcome],
    progress: bool,
) -> None:
    """Gazes at ``todo``; adds to ``done`` and ``errors`` as outcomes come."""
    reported = time.monotonic()
    tally = ray.remote(num_cpus=0)(Tally).remote()
    with run_progress(progress, len(todo), partial(_frames, tally)) as advance:
        for outcome in _outcomes(job, root, identity, plan, todo, tally):
            if outcome.status is Status.DONE:
                done.append(outcome)
            else:
                errors[outcome.video] = outcome
                _log.warning("%s: %s: %s", outcome.video.name, outcome.status.value, outcome.message)
                if time.monotonic() - reported > _REPORT_SECONDS:
                    write_errors(folder, errors.values())
                    reported = time.monotonic()
            advance(1)
    missing = set(todo) - {outcome.video for outcome in done} - set(errors)
    for video in missing:
        errors[video] = Outcome(video, Status.FAILED, "Ray gave no answer for it; see its log")


def _outcomes(
    job: BulkJob,
    root: Path,
    identity: RunIdentity,
    plan: WorkerPlan,
    todo: Sequence[VideoFile],
    tally: Any,
) -> Iterator[Outcome]:
    with _quiet_data_context():
        results = ray.data.from_arrow(_blocks(todo, job.videos_at_once)).map_batches(
            GazeWorker,
            fn_constructor_args=(job, root, identity, plan.threads, tally),
            batch_size=job.videos_at_once,
            # One task in hand: whoever is free takes the next videos, however long the others' are.
            compute=ray.data.ActorPoolStrategy(size=plan.actors, max_tasks_in_flight_per_actor=1),
            num_cpus=plan.cpus,
            num_gpus=plan.gpus,
        )
        try:
            for row in results.iter_rows():
                yield Outcome.from_row(row)
        except (RayError, ray.data.exceptions.UserCodeException) as error:
            raise _told(error) from error


def _frames(tally: Any) -> int:
    """What the tally says; 0 where it is gone, since a bar ends no run."""
    try:
        total: int = ray.get(tally.total.remote(), timeout=_TALLY_SECONDS)
    except RayError:
        return 0
    return total


def _blocks(todo: Sequence[VideoFile], videos_at_once: int) -> list[pa.Table]:
    """Tables of the videos, each a whole number of batches, so that no batch spans two."""
    batches = -(-len(todo) // videos_at_once)
    size = videos_at_once * -(-batches // _MAX_BLOCKS)
    columns = {
        "video": [video.name for video in todo],
        "size": [video.size for video in todo],
        "mtime_ns": [video.mtime_ns for video in todo],
    }
    table = pa.table(columns)
    return [table.slice(start, size).combine_chunks() for start in range(0, len(todo), size)]


def _told(error: BaseException) -> InferenceError:
    """What Ray says, cut to the line that names the cause: the rest is the traceback of another process."""
    lines = [line.strip() for line in str(error).splitlines()]
    causes = [line for line in lines if re.match(r"(?!ray\.)[\w.]*(Error|Exception|Interrupt)\b", line)]
    said = (causes or lines or [""])[-1]
    return InferenceError(f"Ray failed ({type(error).__name__}): {said}; what was finished stays")


@contextmanager
def _ray(job: BulkJob, videos: int) -> Iterator[WorkerPlan]:
    """A Ray to work with, and the plan for it: the one that is connected, the cluster, or one of our own."""
    # Ray reports usage to its makers unless it is told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = job.address or os.environ.get("RAY_ADDRESS")
    if ray.is_initialized():
        yield _cluster_plan(job, videos)
        return
    options = {"log_to_driver": False, "logging_level": logging.ERROR}
    on_term = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            ray.init(address=address, **options)
            plan = _cluster_plan(job, videos)
        else:
            cores = len(os.sched_getaffinity(0))
            plan = plan_on_this_machine(job, cores, gpus_here(), videos)
            ray.init(
                address="local",
                num_cpus=plan.actors * plan.cpus,
                num_gpus=plan.actors * plan.gpus,
                include_dashboard=False,
                **options,
            )
        if threading.current_thread() is threading.main_thread():
            # Ray puts its own in place, which prints a stack and exits with the number of the signal.
            signal.signal(signal.SIGTERM, on_term)
        yield plan
    except (ConnectionError, RuntimeError) as error:
        if isinstance(error, AutoGazeError) or ray.is_initialized():
            raise
        raise InferenceError(
            f"Ray could not {f'be reached at {address}' if address else 'start'} ({error}); check the address, and "
            "/tmp/ray for its logs"
        ) from error
    finally:
        ray.shutdown()


def _cluster_plan(job: BulkJob, videos: int) -> WorkerPlan:
    nodes = [
        Node(node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0))
        for node in ray.nodes()
        if node["Alive"]
    ]
    plan = plan_on_cluster(job, nodes, videos)
    if plan.actors > plan.fitting:
        _log.warning(
            "%d actors are asked for and %d fit now; the others start when machines join the cluster",
            plan.actors,
            plan.fitting,
        )
    return plan


@contextmanager
def _quiet_data_context() -> Iterator[None]:
    """Keeps Ray Data's own bars and plans off the terminal, and leaves its settings as they were."""
    context = ray.data.DataContext.get_current()
    log = logging.getLogger("ray.data")
    bars, level = context.enable_progress_bars, log.level
    context.enable_progress_bars = False
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = bars
        log.setLevel(level)


def _finished(folder: OutputFolder, videos: Sequence[VideoFile], identity: RunIdentity) -> set[VideoFile]:
    """The videos that have a result of this file and this run. Reading a footer mostly waits for the disk."""

    def is_finished(video: VideoFile) -> bool:
        return video.is_text and folder.finished(video, identity) is not None

    with ThreadPoolExecutor(_FOOTER_READERS) as pool:
        return {video for video, found in zip(videos, pool.map(is_finished, videos), strict=True) if found}


def _known_errors(
    folder: OutputFolder, job: BulkJob, videos: Sequence[VideoFile]
) -> dict[VideoFile, Outcome]:
    """The videos that an earlier run could not read and that have not changed since."""
    if job.retry_errors:
        return {}
    known = {outcome.video: outcome for outcome in read_errors(folder) if outcome.status is Status.UNREADABLE}
    return {video: known[video] for video in videos if video in known}
