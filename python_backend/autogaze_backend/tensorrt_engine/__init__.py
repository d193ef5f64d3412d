"""The TensorRT engine: CUDA graphs over static caches, without torch. Imports TensorRT and CUDA when it opens."""

from __future__ import annotations

from autogaze_backend.tensorrt_engine.api import PlanExecutionError
from autogaze_backend.tensorrt_engine.cuda import CudaError
from autogaze_backend.tensorrt_engine.engine import TensorRtEngine

__all__ = ["CudaError", "PlanExecutionError", "TensorRtEngine"]
