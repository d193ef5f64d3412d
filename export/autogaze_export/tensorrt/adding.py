"""Plans into a bundle that is there."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from autogaze_backend.bundle import Bundle, file_sha256
from autogaze_backend.graphs import Phase
from autogaze_backend.plans import Agreement, GraphVariant, PlanSet

from autogaze_export.binding import bind_weights
from autogaze_export.bundle_writer import write_bundle
from autogaze_export.checkpoint import Checkpoint
from autogaze_export.tensorrt.building import PlanSource, build_plans
from autogaze_export.tensorrt.library import TensorRTLibrary
from autogaze_export.tensorrt.measuring import measure_plans
from autogaze_export.tensorrt.options import PlanOptions


def add_plans(
    library: TensorRTLibrary,
    out: Path,
    checkpoint: Checkpoint,
    traced: Mapping[Phase, Path],
    precision: str,
    options: PlanOptions,
) -> list[PlanSet]:
    """Builds the plans of a bundle; see ``building.build_plans``.

    Args:
        library: that builds.
        out: the bundle, of the same checkpoint and graphs.
        checkpoint: whose weights go into the plans.
        traced: the traced graph of each phase.
        precision: "exact" or "fast"; that of the bundle itself does not matter.
        options: targets and shapes.
    """
    weights = bind_weights(checkpoint.spec, checkpoint.tensors)
    source = PlanSource(
        spec=checkpoint.spec,
        traced=traced,
        graphs={phase: file_sha256(path) for phase, path in traced.items()},
        weights={name: weight.astype(np.float32) for name, weight in weights.items()},
        checkpoint=checkpoint.sha256,
    )

    def measure(variant: GraphVariant) -> Agreement:
        # The bundle itself may be fast.
        with tempfile.TemporaryDirectory() as folder:
            write_bundle(Path(folder), checkpoint, traced, "exact")
            return measure_plans(Bundle.load(folder), source, variant)

    return build_plans(
        library, source, out, precision, options, measure=measure if precision == "fast" else None
    )
