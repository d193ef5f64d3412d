"""How good a checkpoint's gaze is: reconstruction loss against tokens, beside baselines and an oracle."""

from autogaze_export.evaluation.reconstruction import LOSS_SCALE, CellTables, FrameState, blank_canvas
from autogaze_export.evaluation.report import (
    EvaluationConfig,
    VideoEvaluation,
    evaluate_frames,
    evaluate_video,
)

__all__ = [
    "LOSS_SCALE",
    "CellTables",
    "EvaluationConfig",
    "FrameState",
    "VideoEvaluation",
    "blank_canvas",
    "evaluate_frames",
    "evaluate_video",
]
