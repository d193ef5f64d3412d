"""What the page and the server say to each other over the WebSocket.

A request is one binary message: the length of a JSON header (uint32, little endian), the header, and the frame's
RGBA bytes. An answer is one JSON text: the cells as exact pixels, in the order in which they are painted.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autogaze_client._errors import AutoGazeError, InvalidInputError
from autogaze_client.fixations import FixationSet
from autogaze_client.modes import AutoGazeInferenceMode
from autogaze_client.result import GazeResult
from autogaze_client.visualization.cells import active_rows, pixel_cells
from autogaze_client.visualization.drawing import drawing_order
from autogaze_client.visualization.modes import AutoGazeMaskGeometryMode

__all__ = ["FrameRequest", "answer", "failure"]

_LARGEST_SIDE = 4096


@dataclass(frozen=True, eq=False)
class FrameRequest:
    """One frame, and how to gaze at it.

    Attributes:
        sequence: the page's number of the request, which the answer repeats.
        frame: uint8 RGBA ``[H, W, 4]``.
        patch_diff: whether differences between frames choose the cells, not the model.
        mode: how the frame becomes the model's input.
        requirement: the task-loss requirement.
        geometry: which pixels cells stand for.
        restart: whether the frame begins a new stream.
    """

    sequence: int
    frame: NDArray[np.uint8]
    patch_diff: bool
    mode: AutoGazeInferenceMode
    requirement: float
    geometry: AutoGazeMaskGeometryMode
    restart: bool

    @classmethod
    def parse(cls, message: bytes) -> FrameRequest:
        """Reads a message.

        Raises:
            InvalidInputError: it is damaged, or a value breaks a rule.
        """
        try:
            length = int.from_bytes(message[:4], "little")
            header: dict[str, Any] = json.loads(message[4 : 4 + length])
            width, height = int(header["width"]), int(header["height"])
            requirement = float(header["requirement"])
            sequence = int(header["sequence"])
            source, mode, geometry = (str(header[name]) for name in ("source", "mode", "geometry"))
            restart = bool(header["restart"])
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInputError(f"the message is damaged ({error!r}); reload the page") from error
        if not (1 <= width <= _LARGEST_SIDE and 1 <= height <= _LARGEST_SIDE):
            raise InvalidInputError(f"the frame is {width}x{height}; sides must be 1..{_LARGEST_SIDE} pixels")
        if not (math.isfinite(requirement) and requirement >= 0):
            raise InvalidInputError(f"requirement is {requirement}; it must be finite and at least 0")
        if source not in ("autogaze", "patch-diff"):
            raise InvalidInputError(f"source is {source!r}; it must be 'autogaze' or 'patch-diff'")
        pixels = np.frombuffer(message, np.uint8, offset=4 + length)
        if pixels.size != width * height * 4:
            raise InvalidInputError(
                f"the message holds {pixels.size} bytes of pixels; {width}x{height} RGBA needs {width * height * 4}"
            )
        return cls(
            sequence=sequence,
            frame=pixels.reshape(height, width, 4),
            patch_diff=source == "patch-diff",
            mode=AutoGazeInferenceMode.parse(mode),
            requirement=requirement,
            geometry=AutoGazeMaskGeometryMode.parse(geometry),
            restart=restart,
        )


def answer(request: FrameRequest, result: GazeResult, milliseconds: float) -> str:
    """The JSON of a result: cells as x0, x1, y0, y1, grid, flat, in painting order."""
    height, width = request.frame.shape[:2]
    points: FixationSet = result.trace.frames[-1]
    cells = drawing_order(
        pixel_cells(active_rows(points), width, height, 1.0, request.geometry), request.geometry
    )
    flat = np.column_stack([cells.rects, cells.grids]).ravel().tolist()
    return json.dumps(
        {
            "sequence": request.sequence,
            "cells": flat,
            "tokens": int(result.tokens_per_frame[-1]),
            "token_ratio": float(result.gaze_ratio_per_frame[-1]),
            "milliseconds": milliseconds,
        }
    )


def failure(sequence: int, error: AutoGazeError, *, lost: bool) -> str:
    """The JSON of an error; ``lost`` tells that the server is away, so that the page tries again."""
    return json.dumps({"sequence": sequence, "error": str(error), "lost": lost})
