"""Writes the network as a checkpoint in the published layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from autogaze_training.cells import SCALES, TOKENS
from autogaze_training.model import (
    FFN,
    GROUP,
    HEAD_DIM,
    HEADS,
    LAYERS,
    RMS_EPS,
    ROPE_THETA,
    WIDTH,
    GazeNetwork,
)

REQUIREMENT = 0.7


def published_config() -> dict[str, Any]:
    """``config.json``, which the published code reads as well."""
    return {
        "model_type": "autogaze",
        "architectures": ["AutoGaze"],
        "scales": "+".join(map(str, SCALES)),
        "num_vision_tokens_each_frame": TOKENS,
        "max_num_frames": 16,
        "use_flash_attn": False,
        "has_task_loss_requirement_during_inference": True,
        "gazing_ratio_config": {
            "sample_strategy_during_training": "fixed",
            "sample_strategy_during_inference": "fixed",
            "fixed": {"gazing_ratio": 0.75},
        },
        "task_loss_requirement_config": {
            "sample_strategy_during_training": "fixed",
            "sample_strategy_during_inference": "fixed",
            "fixed": {"task_loss_requirement": REQUIREMENT},
        },
        "gaze_model_config": {
            "input_img_size": 224,
            "num_vision_tokens_each_frame": TOKENS,
            "vision_model_config": {
                "hidden_dim": WIDTH,
                "out_dim": WIDTH,
                "depth": 1,
                "kernel_size": 16,
                "temporal_patch_size": 1,
                "trunk_temporal_kernel_size": 3,
                "trunk_spatial_kernel_size": 3,
            },
            "connector_config": {"hidden_dim": WIDTH, "num_tokens": 196},
            "gaze_decoder_config": {
                "vocab_size": TOKENS + 1,
                "eos_token_id": TOKENS,
                "hidden_size": WIDTH,
                "intermediate_size": FFN,
                "num_hidden_layers": LAYERS,
                "num_attention_heads": HEADS,
                "num_key_value_heads": HEADS,
                "head_dim": HEAD_DIM,
                "max_position_embeddings": 131072,
                "rms_norm_eps": RMS_EPS,
                "rope_theta": ROPE_THETA,
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                },
                "num_multi_token_pred": GROUP,
                "hidden_act": "silu",
                "attention_bias": False,
                "mlp_bias": False,
                "tie_word_embeddings": False,
            },
        },
    }


PREPROCESSOR: dict[str, Any] = {
    "image_processor_type": "AutoGazeImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "resample": 2,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 127.5,
    "offset": True,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def write_checkpoint(network: GazeNetwork, folder: Path, *, half: bool = True) -> Path:
    """Writes ``config.json``, ``preprocessor_config.json`` and ``model.safetensors`` (float16 or float32)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(published_config(), indent=2) + "\n")
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=2) + "\n")
    kind = torch.float16 if half else torch.float32
    weights = {
        name: weight.detach().to("cpu", kind).contiguous() for name, weight in network.state_dict().items()
    }
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    return folder
