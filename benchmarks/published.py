"""Runs the published model from a checkout that the user has; nothing of it is part of this repository."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def load(checkout: Path, checkpoint: Path, threads: int) -> Callable[[np.ndarray, dict[str, Any]], Any]:
    """Loads the published model.

    Args:
        checkout: of NVlabs/AutoGaze; torch, transformers 4.51, einops, omegaconf and loguru are installed.
        checkpoint: folder of the weights.
        threads: of torch.

    Returns:
        A function of a float32 video ``[B, T, 3, H, W]`` and the knobs of ``GazeModel.generate``.
    """
    import torch

    _stand_in_for_unused_imports()
    sys.path.insert(0, str(checkout))
    from autogaze.models.autogaze import AutoGaze

    torch.set_num_threads(threads)
    model = AutoGaze.from_pretrained(str(checkpoint)).eval()

    def run(video: np.ndarray, knobs: dict[str, Any]) -> Any:
        frames = video.shape[1]
        with torch.inference_mode():
            tensor = torch.from_numpy(video)
            if "max_gaze_tokens_each_frame" in knobs:
                # Its public call takes ratios; these give exactly the tokens asked for.
                tokens = np.broadcast_to(knobs["max_gaze_tokens_each_frame"], frames)
                ratio = [(float(count) + 0.5) / model.num_vision_tokens_each_frame for count in tokens]
            else:
                ratio = knobs["gazing_ratio"]
            requirement = knobs.get("task_loss_requirement")
            return model(
                {"video": tensor}, gazing_ratio=ratio, task_loss_requirement=requirement, generate_only=True
            )

    return run


def _stand_in_for_unused_imports() -> None:
    """It imports timm and wandb without using them at inference."""
    import transformers  # noqa: F401  it looks for timm itself, and must not find a stand-in

    for name, attributes in {
        "timm": (),
        "timm.models": (),
        "timm.models.convnext": ("ConvNeXtBlock",),
        "timm.layers": ("LayerNorm2d",),
        "wandb": (),
    }.items():
        try:
            __import__(name)
        except ImportError:
            module = types.ModuleType(name)
            for attribute in attributes:
                setattr(module, attribute, object)
            sys.modules[name] = module
