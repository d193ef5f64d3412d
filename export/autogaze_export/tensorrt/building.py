"""Builds the plans of a bundle: a plan a bucket, a folder a target, skipped where the same were built before."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from autogaze_backend.graphs import Phase
from autogaze_backend.plans import (
    PLANS_FOLDER,
    Agreement,
    Bucket,
    EngineKind,
    GraphVariant,
    Plan,
    PlanSet,
    PlanTarget,
)
from autogaze_backend.spec import ModelSpec
from autogaze_client._errors import CheckpointError, NotFoundError, PlanBuildError
from numpy.typing import NDArray

from autogaze_export.rewriting.variants import WEIGHT_PREFIXES, for_builder, with_static_shapes, with_weights
from autogaze_export.tensorrt.library import TensorRTLibrary, local_gpu
from autogaze_export.tensorrt.network import mark_refittable, parse_network
from autogaze_export.tensorrt.options import PlanOptions
from autogaze_export.tensorrt.progress import progress_bar

_LOG = logging.getLogger("autogaze.tensorrt")


@dataclass(frozen=True)
class PlanSource:
    """What plans are built from.

    Attributes:
        spec: the architecture.
        traced: the traced graph of each phase.
        graphs: SHA-256 of each.
        weights: bound, float32, by the graphs' names.
        checkpoint: SHA-256 of the checkpoint's weights.
    """

    spec: ModelSpec
    traced: Mapping[Phase, Path]
    graphs: Mapping[Phase, str]
    weights: Mapping[str, NDArray[np.float32]]
    checkpoint: str


def build_plans(
    library: TensorRTLibrary,
    source: PlanSource,
    bundle: Path,
    precision: str,
    options: PlanOptions,
    *,
    measure: Callable[[GraphVariant], Agreement] | None = None,
) -> list[PlanSet]:
    """Builds what is missing of a bundle's plans.

    A set that was built from the same inputs keeps its plans and gets the buckets that it lacks; any other set of
    the same target is replaced, once the new one is whole.

    Args:
        library: that builds.
        source: graphs and weights.
        bundle: whose folder ``plans`` is written.
        precision: "exact" or "fast".
        options: targets and shapes.
        measure: gives the agreement of ``fast`` for the manifest; called when something is built.

    Returns:
        A set a target.

    Raises:
        InvalidInputError: a target or option that the library does not have.
        PlanBuildError: it failed, or built something else than the graph says, or the disk is full.
    """
    library.check(options)
    variant = options.variant or library.variant
    graphs = {phase: for_builder(source.spec, source.traced[phase], variant, precision) for phase in Phase}
    models = {phase: with_weights(model, source.weights) for phase, model in graphs.items()}
    targets = [
        PlanTarget(library.kind, library.version, capability, precision)
        for capability in library.targets(options)
    ]
    wanted = options.buckets(source.spec.group_size + source.spec.vision_tokens)
    agreement: Agreement | None = None
    sets = []
    for target in targets:
        blank = PlanSet(
            path=bundle / PLANS_FOLDER / target.name,
            target=target,
            cuda=library.cuda,
            variant=variant,
            checkpoint=source.checkpoint,
            graphs=dict(source.graphs),
            inputs=_digest(models, target, variant, options),
            version_compatible=options.version_compatible,
            hardware_compatible=options.hardware_compatible,
            stripped=options.strip_weights,
            plans={},
        )
        known = _reusable(blank)
        missing = [bucket for bucket in wanted if known is None or bucket not in known.plans]
        if known is not None and not missing:
            _LOG.info("%s: all %d plans are there, built from the same inputs", known.path, len(wanted))
            sets.append(known)
            continue
        if measure is not None and agreement is None:
            agreement = measure(variant)
        start = replace(known or blank, agreement=agreement)
        sets.append(_build_set(library, source.spec, models, start, known is not None, missing, options))
    return sets


def _build_set(
    library: TensorRTLibrary,
    spec: ModelSpec,
    models: Mapping[Phase, Any],
    start: PlanSet,
    grows: bool,
    missing: Sequence[Bucket],
    options: PlanOptions,
) -> PlanSet:
    with (
        _working_folder(start, grows) as folder,
        _timing_file(library, start.target, options) as timing,
        progress_bar(options.progress, start.target.name, len(missing)) as progress,
    ):
        plans = replace(start, path=folder)
        for bucket in missing:
            progress.starts(bucket.file)
            plan = _build_plan(library, spec, models[bucket.phase], plans, bucket, options, timing)
            plans = replace(plans, plans={**plans.plans, bucket: plan})
            # A set that grows keeps what it has when the build is cut short.
            plans.write()
            progress.advances()
    return PlanSet.load(start.path)


def _build_plan(
    library: TensorRTLibrary,
    spec: ModelSpec,
    model: Any,
    plans: PlanSet,
    bucket: Bucket,
    options: PlanOptions,
    timing: Path | None,
) -> Plan:
    start = time.perf_counter()
    static = with_static_shapes(model, _sizes(spec, bucket))
    if options.keep_onnx is not None:
        with _space(options.keep_onnx):
            options.keep_onnx.mkdir(parents=True, exist_ok=True)
        kept = options.keep_onnx / Path(bucket.file).with_suffix(".onnx").name
        _write(kept, static.SerializeToString(deterministic=True))
    network, parser, report = parse_network(library, static, spec, bucket, plans.variant)
    if options.strip_weights:
        weights = (item.name for item in static.graph.initializer)
        mark_refittable(library, network, (name for name in weights if name.startswith(WEIGHT_PREFIXES)))
    known = timing.read_bytes() if timing is not None and timing.is_file() else b""
    config = library.configuration(options, plans.target.compute_capability, known)
    library.messages.clear()
    serialized = library.builder.build_serialized_network(network, config)
    if serialized is None:
        hint = "" if plans.variant is GraphVariant.PLAIN else "; try --graph-variant plain"
        raise PlanBuildError(
            f"{library.kind.value} {library.version} could not build {bucket.file} for {plans.target.sm}: "
            f"{library.said()}{hint}"
        )
    data = bytes(memoryview(serialized))
    del serialized, parser, network
    if timing is not None:
        _write(timing, library.timing(config))
    _write(plans.path / bucket.file, data)
    return Plan(
        bucket=bucket,
        file=bucket.file,
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        build_seconds=round(time.perf_counter() - start, 3),
        tensors=report.tensors,
    )


def _sizes(spec: ModelSpec, bucket: Bucket) -> dict[str, int]:
    """The numbers of the graphs' symbols; every prefill makes room for a whole group that is left over."""
    return {
        "rows": bucket.rows,
        "frames": bucket.length,
        "capacity": bucket.length,
        "pending": spec.group_size,
        f"pending + {spec.vision_tokens}": spec.group_size + spec.vision_tokens,
    }


def _digest(
    models: Mapping[Phase, Any], target: PlanTarget, variant: GraphVariant, options: PlanOptions
) -> str:
    """SHA-256 over what shapes a plan, buckets aside: graphs with their weights, target and options."""
    settings = {
        "target": target.name,
        "variant": variant.value,
        "version_compatible": options.version_compatible,
        "hardware_compatible": options.hardware_compatible,
        "strip_weights": options.strip_weights,
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for phase in Phase:
        digest.update(models[phase].SerializeToString(deterministic=True))
    return digest.hexdigest()


def _reusable(blank: PlanSet) -> PlanSet | None:
    """The set that is there, if it is whole and was built from the same inputs."""
    try:
        found = PlanSet.load(blank.path)
    except (NotFoundError, CheckpointError):
        return None
    return found if found.inputs == blank.inputs else None


@contextmanager
def _working_folder(plans: PlanSet, grows: bool) -> Iterator[Path]:
    """Where plans are written: into a set that grows, or beside the one that will be replaced."""
    if grows:
        yield plans.path
        return
    parent = plans.path.parent
    with _space(parent):
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=f".{plans.target.name}."))
    try:
        # mkdtemp is for the owner alone; a server may run as someone else.
        folder.chmod(0o755)
        yield folder
        if plans.path.exists():
            replaced = folder.with_name(f"{folder.name}.replaced")
            plans.path.rename(replaced)
            folder.rename(plans.path)
            shutil.rmtree(replaced)
        else:
            folder.rename(plans.path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _timing_file(library: TensorRTLibrary, target: PlanTarget, options: PlanOptions) -> Iterator[Path | None]:
    """The file of measured kernels; None for a library that measures none."""
    if library.kind is EngineKind.TENSORRT_RTX:
        yield None
        return
    path = options.timing_cache
    if path is None:
        from autogaze_backend.serving import cache_directory

        gpu = local_gpu()
        name = re.sub(r"[^A-Za-z0-9]+", "-", gpu.name) if gpu is not None else "unknown"
        file = f"{target.engine.value}-{target.version}-{target.sm}-{name}.cache"
        path = cache_directory() / "timing" / file
    with _space(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    yield path


def _write(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all."""
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with _space(path.parent, len(data)):
            staged.write_bytes(data)
            staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


@contextmanager
def _space(folder: Path, size: int = 0) -> Iterator[None]:
    """Says in plain words that the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(folder if folder.is_dir() else folder.parent).free
        raise PlanBuildError(
            f"no space left in {folder}: {max(size, 1) / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free; free "
            "some, or build fewer plans (--batch-buckets, --length-buckets, --frame-buckets)"
        ) from error
