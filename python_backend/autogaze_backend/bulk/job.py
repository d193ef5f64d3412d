"""What a bulk run is asked to do, and how it divides a machine or a cluster."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from autogaze_client._errors import InvalidInputError

from autogaze_backend.bulk.settings import BulkSettings

_THREADS = 4
"""Of a CPU actor where nothing is said: the small graphs gain little from more."""


@dataclass(frozen=True)
class BulkJob:
    """A bulk run.

    Attributes:
        source: a folder of videos, or one video.
        out: the output folder.
        bundle: what ``autogaze build`` wrote.
        settings: how each video is gazed at.
        patterns: of names; empty = the known suffixes of videos.
        device: "cpu", or "cuda" for one actor a GPU.
        actors: processes with a model each; None = one a GPU, or as many as the cores allow.
        threads: CPU threads of each model; None = 4, or fewer where there are fewer cores.
        videos_at_once: videos that one actor has in hand; their windows share the engine's batches. Each has a
            decoding task.
        attempts: how often a video is tried whose actor or decoder dies.
        decode_timeout: seconds that decoding one window may take.
        max_pixels: of a frame.
        max_window_bytes: of a window's decoded frames.
        retry_errors: whether videos that an earlier run could not read are tried again.
        address: of a Ray cluster; None = ``$RAY_ADDRESS``, or a Ray of its own on this machine.
    """

    source: Path
    out: Path
    bundle: Path
    settings: BulkSettings = field(default_factory=BulkSettings)
    patterns: tuple[str, ...] = ()
    device: str = "cpu"
    actors: int | None = None
    threads: int | None = None
    videos_at_once: int = 1
    attempts: int = 3
    decode_timeout: float = 600.0
    max_pixels: int = 8192 * 8192
    max_window_bytes: int = 2 * 1024**3
    retry_errors: bool = False
    address: str | None = None

    def __post_init__(self) -> None:
        for name in ("actors", "threads", "videos_at_once", "attempts", "max_pixels", "max_window_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidInputError(f"{name} is {value}; it must be 1 or more")
        if not self.decode_timeout > 0:
            raise InvalidInputError(f"decode_timeout is {self.decode_timeout}; it must be above 0 seconds")
        if self.device not in ("cpu", "cuda"):
            raise InvalidInputError(
                f"device is {self.device!r}; it must be 'cpu', or 'cuda' for one actor a GPU"
            )


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, as Ray counts it."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class WorkerPlan:
    """How many actors run, and what each reserves.

    Attributes:
        actors: processes with a model each.
        threads: CPU threads of each model.
        cpus: CPUs that each reserves: its threads, and one for each decoding task of its own.
        gpus: GPUs that each reserves.
        fitting: how many of them the machines can hold now.
    """

    actors: int
    threads: int
    cpus: int
    gpus: int
    fitting: int


def gpus_here(devices: Path = Path("/dev")) -> int:
    """NVIDIA GPUs that this process may use: those that ``CUDA_VISIBLE_DEVICES`` names, or all device files.

    Args:
        devices: where the driver makes its files.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return len([name for name in named.split(",") if name.strip() not in ("", "-1", "NoDevFiles")])
    return len(list(devices.glob("nvidia[0-9]*")))


def plan_on_this_machine(job: BulkJob, cores: int, gpus: int, videos: int) -> WorkerPlan:
    """The plan for a Ray of our own: its CPUs are a count that we choose, so decoding shares the cores.

    Args:
        job: the run.
        cores: of this machine.
        gpus: likewise.
        videos: to gaze at; more actors than videos would idle.

    Raises:
        InvalidInputError: GPUs are asked for and there are none, or fewer than actors.
    """
    if job.device != "cpu":
        actors = job.actors or gpus
        if actors > gpus or not actors:
            raise InvalidInputError(
                f"{actors or 'no'} actors on {job.device} need a GPU each and this machine has {gpus}; pass fewer "
                "actors, or device cpu"
            )
        threads = job.threads or min(_THREADS, max(cores // actors, 1))
        return WorkerPlan(actors, threads, threads + job.videos_at_once, 1, actors)
    actors = job.actors or max(1, min(cores // (job.threads or _THREADS), videos))
    threads = job.threads or max(1, min(cores // actors, _THREADS))
    return WorkerPlan(actors, threads, threads + job.videos_at_once, 0, actors)


def plan_on_cluster(job: BulkJob, nodes: Sequence[Node], videos: int) -> WorkerPlan:
    """The plan for a running cluster: actors never reserve more than a machine has.

    Args:
        job: the run.
        nodes: the machines that are there now.
        videos: to gaze at.

    Raises:
        InvalidInputError: no machine can hold an actor, and no number of actors was asked for.
    """
    threads = job.threads or _THREADS
    cpus, gpus = threads + job.videos_at_once, 0 if job.device == "cpu" else 1
    fitting = sum(int(min(node.cpus // cpus, node.gpus if gpus else node.cpus)) for node in nodes)
    if not fitting and job.actors is None:
        largest = max((f"{node.cpus:g} CPUs and {node.gpus:g} GPUs" for node in nodes), default="no machine")
        raise InvalidInputError(
            f"no machine of the cluster can hold an actor, which takes {cpus} CPUs ({threads} threads and "
            f"{job.videos_at_once} decoders) and {gpus} GPUs; there is {largest}. Lower threads or videos_at_once, or "
            "pass a number of actors for which Ray's autoscaler may add machines"
        )
    return WorkerPlan(job.actors or min(fitting, videos), threads, cpus, gpus, fitting)
