"""What plans are made of: their targets, buckets, bindings and measured results, and how JSON holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from autogaze_backend.graphs import Phase


class EngineKind(str, Enum):
    """The library that built a plan and alone can run it; the value is the engine's name everywhere."""

    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"


class GraphVariant(str, Enum):
    """How the traced graph was written for the builder; both compute the same.

    ``OPSET24`` has TensorScatter, RotaryEmbedding, RMSNormalization and Attention with an explicit mask;
    ``PLAIN`` spells them out for TensorRT before 10.15.
    """

    OPSET24 = "opset24"
    PLAIN = "plain"


@dataclass(frozen=True)
class PlanTarget:
    """What a set of plans was built for.

    Attributes:
        engine: the library.
        version: its version, such as "10.15.1.29".
        compute_capability: of the GPU, such as (8, 9).
        precision: "exact" or "fast".
    """

    engine: EngineKind
    version: str
    compute_capability: tuple[int, int]
    precision: str

    @property
    def name(self) -> str:
        """The folder's name, such as "tensorrt-rtx-1.7.1-sm89-fast"."""
        return f"{self.engine.value}-{self.version}-{self.sm}-{self.precision}"

    @property
    def sm(self) -> str:
        """Such as "sm89"."""
        return "sm{}{}".format(*self.compute_capability)

    def build_command(self, bundle: Path) -> str:
        """The command that builds these plans into ``bundle``."""
        major, minor = self.compute_capability
        return (
            f"autogaze build CHECKPOINT {bundle} --engine {self.engine.value} --precision {self.precision} "
            f"--sm {major}.{minor}"
        )


@dataclass(frozen=True, order=True)
class Bucket:
    """The static shape of a plan.

    Attributes:
        phase: the graph.
        rows: rows a call; fewer are filled up by the caller.
        length: frames a call of the encoder; else positions of the cache.
    """

    phase: Phase
    rows: int
    length: int

    @property
    def file(self) -> str:
        """The plan's file name."""
        return (
            f"{self.phase.value}-r{self.rows}-{'t' if self.phase is Phase.ENCODER else 'l'}{self.length}.plan"
        )


@dataclass(frozen=True)
class PlanTensor:
    """One binding of a plan, as the builder saw it.

    Attributes:
        name: of ``graphs.signature``.
        dtype: numpy's name, such as "float16".
        shape: static.
        is_input: else an output.
        alias: for a cache's output, the input whose memory it must share; None else.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    is_input: bool
    alias: str | None = None


@dataclass(frozen=True)
class Plan:
    """One plan file.

    Attributes:
        bucket: its shape.
        file: name within the folder of the set.
        sha256: of the file.
        size: bytes.
        build_seconds: what the builder took.
        tensors: its bindings, inputs first, each in the order of ``graphs.signature``.
    """

    bucket: Bucket
    file: str
    sha256: str
    size: int
    build_seconds: float
    tensors: tuple[PlanTensor, ...]


@dataclass(frozen=True)
class Agreement:
    """``fast`` against float32, the float32 history fed to it (so that one early difference counts once).

    Attributes:
        choices: tokens compared.
        equal: share of them that is the same.
        max_task_loss_difference: between two predictions of the same token's loss.
        runs_on: what computed it, such as "onnxruntime 1.32 CPU".
    """

    choices: int
    equal: float
    max_task_loss_difference: float
    runs_on: str


@dataclass(frozen=True)
class Parity:
    """What the golden clips gave when these plans ran on a GPU (``make test-tensorrt``).

    Attributes:
        gpu: its name.
        driver: its version.
        cases: golden cases that were run.
        identical: how many gave the published model's tokens.
        agreement: of ``fast``; None for ``exact``.
    """

    gpu: str
    driver: str
    cases: int
    identical: int
    agreement: Agreement | None = None


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """Plain JSON values; ``plan_from_json`` reads them back."""
    bucket = plan.bucket
    return {
        "phase": bucket.phase.value,
        "rows": bucket.rows,
        "length": bucket.length,
        "file": plan.file,
        "sha256": plan.sha256,
        "size": plan.size,
        "build_seconds": plan.build_seconds,
        "tensors": [asdict(tensor) for tensor in plan.tensors],
    }


def plan_from_json(item: Mapping[str, Any]) -> Plan:
    """Reads what ``plan_to_json`` wrote; KeyError, TypeError or ValueError where it did not."""
    bucket = Bucket(Phase(item["phase"]), int(item["rows"]), int(item["length"]))
    if bucket.rows < 1 or bucket.length < 1:
        raise ValueError(f"bucket of {bucket.rows} rows and length {bucket.length}")
    tensors = tuple(PlanTensor(**{**t, "shape": tuple(int(d) for d in t["shape"])}) for t in item["tensors"])
    return Plan(
        bucket=bucket,
        file=str(item["file"]),
        sha256=str(item["sha256"]),
        size=int(item["size"]),
        build_seconds=float(item["build_seconds"]),
        tensors=tensors,
    )


def agreement_from_json(values: Mapping[str, Any] | None) -> Agreement | None:
    """Reads a plain dict; TypeError where it has other keys."""
    return None if values is None else Agreement(**values)
