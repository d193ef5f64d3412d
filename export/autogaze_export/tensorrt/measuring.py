"""The agreement of ``fast`` plans, before any GPU has run them: float16 emulated in ONNX Runtime on the CPU."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from autogaze_backend.bundle import Bundle
from autogaze_backend.graphs import Phase
from autogaze_backend.plans import Agreement, GraphVariant
from autogaze_client._errors import MissingExtraError
from numpy import float32
from safetensors.numpy import save_file

from autogaze_export.rewriting.emulating import emulated
from autogaze_export.rewriting.variants import for_builder, weight_types
from autogaze_export.tensorrt.building import PlanSource


def emulated_bundle(exact: Bundle, source: PlanSource, variant: GraphVariant, folder: Path) -> Bundle:
    """A bundle that computes what ``fast`` plans of ``variant`` would; its files go into ``folder``."""
    weights = dict(source.weights)
    graphs = {}
    for phase in Phase:
        fast = for_builder(source.spec, source.traced[phase], variant, "fast")
        for name, dtype in weight_types(fast).items():
            weights[name] = weights[name].astype(dtype).astype(float32)
        graphs[phase] = folder / f"{phase.value}.onnx"
        graphs[phase].write_bytes(emulated(fast).SerializeToString())
    save_file(weights, folder / "weights.safetensors")
    return dataclasses.replace(exact, precision="fast", graphs=graphs, weights=folder / "weights.safetensors")


def measure_plans(exact: Bundle, source: PlanSource, variant: GraphVariant) -> Agreement:
    """Compares emulated ``fast`` with ``exact`` on the sample clips; takes half a minute on two cores.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
    """
    try:
        from autogaze_export.agreement import measure_agreement, sample_clips

        with tempfile.TemporaryDirectory() as folder:
            candidate = emulated_bundle(exact, source, variant, Path(folder))
            found = measure_agreement(exact, candidate, sample_clips(exact))
    except ImportError as error:
        raise MissingExtraError.for_extra("precision 'fast'", "fast", error) from error
    return dataclasses.replace(found, runs_on=f"float16 emulated, {found.runs_on}")
