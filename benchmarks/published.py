"""Runs the published model from a checkout that the user has; nothing of it is part of this repository."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np


def load(
    checkout: Path, checkpoint: Path, threads: int, device: str = "cpu"
) -> Callable[[np.ndarray, dict[str, Any]], Any]:
    """Loads the published model.

    Args:
        checkout: of NVlabs/AutoGaze; torch, transformers 4.51, einops, omegaconf and loguru are installed.
        checkpoint: folder of the weights.
        threads: of torch.
        device: "cpu" or "cuda"; a video is copied there, and the call returns when the device is done.

    Returns:
        A function of a float32 video ``[B, T, 3, H, W]`` and the knobs of ``GazeModel.generate``.
    """
    import torch

    model = _model(checkout, checkpoint, threads).to(device)

    def run(video: np.ndarray, knobs: dict[str, Any]) -> Any:
        if "max_gaze_tokens_each_frame" in knobs:
            # Its public call takes ratios; these give exactly the tokens asked for.
            tokens = np.broadcast_to(knobs["max_gaze_tokens_each_frame"], video.shape[1])
            knobs = {
                "gazing_ratio": [
                    (float(count) + 0.5) / model.num_vision_tokens_each_frame for count in tokens
                ]
            }
        with torch.inference_mode():
            answer = model({"video": torch.as_tensor(video, device=device)}, generate_only=True, **knobs)
            if device != "cpu":
                torch.cuda.synchronize()
            return answer

    return run


def load_streaming(
    checkout: Path, checkpoint: Path, threads: int
) -> Callable[[np.ndarray, dict[str, Any]], None]:
    """Loads the published model as a stream: one frame a call, its four caches passed on."""
    import torch

    model = _model(checkout, checkpoint, threads)

    def run(video: np.ndarray, knobs: dict[str, Any]) -> None:
        past: dict[str, Any] = {}
        with torch.inference_mode():
            for t in range(video.shape[1]):
                frame = torch.from_numpy(video[:, t : t + 1])
                out = model({"video": frame}, generate_only=True, use_cache=True, **knobs, **past)
                past = {
                    "past_key_values": out["past_key_values"],
                    "past_inputs_embeds": out["past_input_embeds"],
                    "past_attention_mask": out["past_attention_mask"],
                    "past_conv_values": out["past_conv_values"],
                }

    return run


def _model(checkout: Path, checkpoint: Path, threads: int) -> Any:
    import torch

    _stand_in_for_unused_imports()
    sys.path.insert(0, str(checkout))
    from autogaze.models.autogaze import AutoGaze

    torch.set_num_threads(threads)
    return AutoGaze.from_pretrained(str(checkpoint)).eval()


def _stand_in_for_unused_imports() -> None:
    """It imports timm and wandb without using them at inference."""
    # They look for timm and wandb themselves, accelerate too, and must not find a stand-in.
    import transformers.modeling_utils
    import transformers.models.llama.modeling_llama  # noqa: F401

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
            module.__spec__ = ModuleSpec(name, None)
            for attribute in attributes:
                setattr(module, attribute, object)
            sys.modules[name] = module
