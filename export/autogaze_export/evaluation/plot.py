"""The curves as a PNG, drawn with Pillow: reconstruction loss against tokens a frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autogaze_client._errors import MissingExtraError

from autogaze_export.evaluation.report import MODEL, VideoEvaluation

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

_COLOURS = {
    MODEL: (214, 39, 40),
    "greedy oracle": (44, 44, 44),
    "patch difference": (31, 119, 180),
    "coarse to fine": (44, 160, 44),
    "random cells": (148, 103, 189),
}
_GRID, _TEXT = (222, 222, 222), (60, 60, 60)
_PANEL, _MARGIN, _LEGEND = (560, 400), (64, 56, 24, 48), 40
_SCALE = 2
_COLUMNS = 2


def write_plot(path: str | Path, evaluations: Sequence[VideoEvaluation], *, requirement: float) -> Path:
    """Draws one panel a video, both axes logarithmic.

    Args:
        path: of the PNG.
        evaluations: with curves.
        requirement: marked by a line.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise MissingExtraError.for_extra("Drawing the curves", "viz", error) from error
    width, height = _PANEL
    columns = min(_COLUMNS, len(evaluations))
    rows = -(-len(evaluations) // columns)
    size = (width * columns * _SCALE, (height * rows + _LEGEND) * _SCALE)
    image = Image.new("RGB", size, (255, 255, 255))
    draw = ImageDraw.Draw(image)
    for index, evaluation in enumerate(evaluations):
        corner = (index % columns * width, index // columns * height)
        _Panel(draw, corner, evaluation).paint(requirement)
    _legend(draw, evaluations[0], height * rows)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    image.save(target, optimize=True)
    return target


class _Panel:
    def __init__(self, draw: ImageDraw, corner: tuple[int, int], evaluation: VideoEvaluation) -> None:
        self._draw, self._evaluation = draw, evaluation
        values = [v for curve in evaluation.curves.values() for v in curve if v > 0]
        self._x = (math.log(evaluation.curve_tokens[0]), math.log(evaluation.curve_tokens[-1]))
        self._y = (math.log(max(min(values), 0.05) * 0.9), math.log(max(values) * 1.1))
        margin_left, margin_top, right, bottom = _MARGIN
        left, top = corner
        self._box = (left + margin_left, top + margin_top, left + _PANEL[0] - right, top + _PANEL[1] - bottom)

    def paint(self, requirement: float) -> None:
        left, top, right, bottom = self._box
        evaluation = self._evaluation
        self._text((left, top - 42), evaluation.name, 17)
        self._text((left, bottom + 26), "tokens a frame", 13)
        self._text((left - 52, top - 20), "loss", 13)
        for tokens in evaluation.curve_tokens:
            x = self._place(tokens, 1.0)[0]
            self._line([(x, top), (x, bottom)], _GRID, 1)
            self._text((x - 6, bottom + 6), str(tokens), 12)
        for value in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0):
            if self._y[0] <= math.log(value) <= self._y[1]:
                y = self._place(1, value)[1]
                self._line([(left, y), (right, y)], _GRID, 1)
                self._text((left - 32, y - 8), f"{value:g}", 12)
        y = self._place(1, requirement)[1]
        self._line([(left, y), (right, y)], (150, 150, 150), 2)
        self._text((left + 6, y + 3), f"requirement {requirement:g}", 12)
        for name, curve in evaluation.curves.items():
            points = [self._place(t, v) for t, v in zip(evaluation.curve_tokens, curve, strict=True)]
            self._line(points, _COLOURS[name], 3 if name == MODEL else 2)

    def _place(self, tokens: float, value: float) -> tuple[float, float]:
        left, top, right, bottom = self._box
        x = (math.log(tokens) - self._x[0]) / max(1e-9, self._x[1] - self._x[0])
        # What lies below the axis is drawn on it.
        y = (max(math.log(max(value, 1e-9)), self._y[0]) - self._y[0]) / (self._y[1] - self._y[0])
        return left + x * (right - left), bottom - y * (bottom - top)

    def _line(self, points: Sequence[tuple[float, float]], colour: tuple[int, int, int], width: int) -> None:
        scaled = [(x * _SCALE, y * _SCALE) for x, y in points]
        self._draw.line(scaled, fill=colour, width=width * _SCALE, joint="curve")

    def _text(self, at: tuple[float, float], text: str, size: int) -> None:
        _text(self._draw, at, text, size)


def _legend(draw: ImageDraw, evaluation: VideoEvaluation, top: int) -> None:
    x = _MARGIN[0]
    for name in evaluation.curves:
        y = top + 12
        line = [(x * _SCALE, y * _SCALE), ((x + 24) * _SCALE, y * _SCALE)]
        draw.line(line, fill=_COLOURS[name], width=3 * _SCALE)
        _text(draw, (x + 30, y - 9), name, 13)
        x += 46 + 8 * len(name)


def _text(draw: ImageDraw, at: tuple[float, float], text: str, size: int) -> None:
    from PIL import ImageFont

    font = ImageFont.load_default(size * _SCALE)
    draw.text((at[0] * _SCALE, at[1] * _SCALE), text, fill=_TEXT, font=font)
