"""AutoGaze client SDK: numpy and tritonclient only; pictures, video and progress bars are extras.

Names are imported on first use, so that a process that wants the vocabulary alone (the server's, for
instance) does not load gRPC.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autogaze_client._async_client import AsyncGazeClient
    from autogaze_client._client import GazeClient
    from autogaze_client._config import Timeouts, TLSConfig
    from autogaze_client._errors import (
        AutoGazeError,
        CheckpointError,
        DeadlineExceededError,
        InferenceError,
        InvalidInputError,
        MissingExtraError,
        NotFoundError,
        ServerUnavailableError,
        VideoDecodeError,
    )
    from autogaze_client.fixations import FixationBounds, FixationPoint, FixationSet, FrameFixationTrace
    from autogaze_client.generated import AutoGazeGenerateOutput, AutoGazeScaleTokenMask
    from autogaze_client.geometry import cell_pixel_rects, fixation_pixel_rects
    from autogaze_client.layouts import (
        AutoGazeScaleTokenLayout,
        layouts_from_grids,
        parse_scales,
        scale_token_layouts,
        square_grid,
    )
    from autogaze_client.modes import AutoGazeInferenceMode
    from autogaze_client.report import ReportPaths, write_report
    from autogaze_client.result import GazeResult, GazeTimings, SourceSize
    from autogaze_client.statistics import ModelStatistics, ServerStatistics
    from autogaze_client.video import VideoReader, VideoWriter
    from autogaze_client.visualize import (
        contact_sheet,
        legend_strip,
        scale_color,
        scale_mask_image,
        side_by_side,
    )

__all__ = [
    "AsyncGazeClient",
    "AutoGazeError",
    "AutoGazeGenerateOutput",
    "AutoGazeInferenceMode",
    "AutoGazeScaleTokenLayout",
    "AutoGazeScaleTokenMask",
    "CheckpointError",
    "DeadlineExceededError",
    "FixationBounds",
    "FixationPoint",
    "FixationSet",
    "FrameFixationTrace",
    "GazeClient",
    "GazeResult",
    "GazeTimings",
    "InferenceError",
    "InvalidInputError",
    "MissingExtraError",
    "ModelStatistics",
    "NotFoundError",
    "ReportPaths",
    "ServerStatistics",
    "ServerUnavailableError",
    "SourceSize",
    "TLSConfig",
    "Timeouts",
    "VideoDecodeError",
    "VideoReader",
    "VideoWriter",
    "cell_pixel_rects",
    "contact_sheet",
    "fixation_pixel_rects",
    "layouts_from_grids",
    "legend_strip",
    "parse_scales",
    "scale_color",
    "scale_mask_image",
    "scale_token_layouts",
    "side_by_side",
    "square_grid",
    "write_report",
]

_MODULES = {
    "_async_client": ("AsyncGazeClient",),
    "_client": ("GazeClient",),
    "_config": ("TLSConfig", "Timeouts"),
    "_errors": (
        "AutoGazeError",
        "CheckpointError",
        "DeadlineExceededError",
        "InferenceError",
        "InvalidInputError",
        "MissingExtraError",
        "NotFoundError",
        "ServerUnavailableError",
        "VideoDecodeError",
    ),
    "fixations": ("FixationBounds", "FixationPoint", "FixationSet", "FrameFixationTrace"),
    "generated": ("AutoGazeGenerateOutput", "AutoGazeScaleTokenMask"),
    "geometry": ("cell_pixel_rects", "fixation_pixel_rects"),
    "layouts": (
        "AutoGazeScaleTokenLayout",
        "layouts_from_grids",
        "parse_scales",
        "scale_token_layouts",
        "square_grid",
    ),
    "modes": ("AutoGazeInferenceMode",),
    "report": ("ReportPaths", "write_report"),
    "result": ("GazeResult", "GazeTimings", "SourceSize"),
    "statistics": ("ModelStatistics", "ServerStatistics"),
    "video": ("VideoReader", "VideoWriter"),
    "visualize": ("contact_sheet", "legend_strip", "scale_color", "scale_mask_image", "side_by_side"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
