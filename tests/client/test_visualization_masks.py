"""The mask panel: the rows of visualization §4, and the spellings of §3 to §5."""

from __future__ import annotations

import autogaze_client as ag
import numpy as np
import pytest
from autogaze_client import (
    AutoGazeMaskGeometryMode,
    AutoGazeMaskVisualizationMode,
    AutoGazeVisualizationMode,
    InvalidInputError,
)
from visualization_helpers import box, cell, solid

ORANGE, GREEN = (255, 180, 0, 255), (60, 220, 120, 255)


def at(image, x, y):
    return tuple(int(value) for value in image[y, x])


def test_overlay():
    """§4: fine cells on top, borders of one pixel, interiors at 42 %."""
    image = ag.fixation_scale_mask_rgba([box(0.5, 0.5, 1, 1, 2), box(0.625, 0.625, 0.25, 0.25, 4)], 8, 8)
    assert at(image, 0, 0) == ORANGE
    assert at(image, 5, 5) == GREEN
    nested = [box(0.5, 0.5, 1 / grid * 1.75, 1 / grid * 1.75, grid) for grid in (2, 4, 7)]
    image = ag.fixation_scale_mask_rgba(nested, 16, 16)
    assert at(image, 8, 8)[:3] == (0, 78, 107)
    assert at(image, 5, 5)[:3] == (25, 92, 50)
    assert at(ag.fixation_scale_mask_rgba([], 2, 2), 0, 0) == (0, 0, 0, 255)


def test_a_later_input_wins_among_equals():
    first, second = box(0.5, 0.5, 1, 1, 2), box(0.5, 0.5, 1, 1, 4)
    assert at(ag.fixation_scale_mask_rgba([first, second], 4, 4), 0, 0) == GREEN
    assert at(ag.fixation_scale_mask_rgba([second, first], 4, 4), 0, 0) == ORANGE


def test_image_styles():
    """§4: source 10,20,30 / 100,110,120, left half of grid 2, a = .5."""
    source = np.array([[[10, 20, 30, 255], [100, 110, 120, 255]]], np.uint8)
    left = [box(0.25, 0.5, 0.5, 1, 2)]
    overlay = ag.fixation_image_overlay_mask_rgba(source, left, 2, 1, 1.0, 0.5)
    only = ag.fixation_image_mask_only_rgba(source.tobytes(), left, 2, 1, 1.0, 0.5)
    assert at(overlay, 0, 0) == at(only, 0, 0) == (133, 100, 15, 255)
    assert at(overlay, 1, 0) == (100, 110, 120, 255)
    assert at(only, 1, 0) == (0, 0, 0, 0)


def test_mixing():
    """§4: solid 100,50,0,200, grid-2 (0,0): overlay 255,180,0; blended at .5; at .38 border and interior."""
    corner, source = [cell(2, 0, 0)], solid(4, 4, 100, 50, 0, 200)
    assert at(ag.fixation_scale_mask_rgba(corner, 4, 4), 0, 0) == ORANGE
    assert at(ag.fixation_image_overlay_mask_rgba(source, corner, 4, 4, 1, 0.5), 0, 0) == (178, 115, 0, 200)
    image = ag.fixation_image_mask_only_rgba(solid(8, 8, 100, 50, 0, 200), corner, 8, 8, 1, 0.38)
    assert at(image, 0, 0) == (159, 99, 0, 200)
    assert at(image, 1, 1) == (103, 60, 0, 200)


@pytest.mark.parametrize("alpha", [0, 0.25, 0.38, 0.5, 0.55, 1, 7])
def test_every_byte_mixes_as_the_formula_says(alpha):
    """§4: round(source·(1−a) + colour·a) in float32, half away from zero."""
    source = np.zeros((1, 256, 4), np.uint8)
    source[0, :, :3] = np.arange(256)[:, None]
    image = ag.fixation_image_overlay_mask_rgba(source, [box(0.5, 0.5, 1, 1, 2)], 256, 1, 1.0, alpha)
    share = np.float32(min(alpha, 1))
    mixed = source[..., :3].astype(np.float32) * (1 - share) + np.float32([255, 180, 0]) * share
    np.testing.assert_array_equal(image[..., :3], np.floor(mixed.astype(np.float64) + 0.5))


def test_scale_rows():
    """§4: a band for each grid present, picture in the frame's aspect, centred."""
    image = ag.fixation_scale_rows_mask_rgba([cell(2, 0, 0), cell(4, 3, 3)], 8, 8)
    coloured = {(int(x), int(y)): at(image, x, y) for y, x in np.argwhere(image[..., :3].any(axis=2))}
    assert {place for place, colour in coloured.items() if colour == ORANGE} == {
        (x, y) for x in (2, 3) for y in (0, 1)
    }
    assert {place for place, colour in coloured.items() if colour == GREEN} == {(5, 7)}
    wide = ag.fixation_scale_rows_mask_rgba([box(0.5, 0.5, 1, 1, 2), cell(4, 3, 3)], 16, 8)
    assert [at(wide, x, y) for x, y in ((0, 0), (4, 0), (11, 7), (15, 7))] == [
        (0, 0, 0, 255),
        ORANGE,
        GREEN,
        (0, 0, 0, 255),
    ]


def test_scale_row_bands():
    """§4: 10×10 with three grids: bands [0,4), [3,7), [6,10), viewport x [3,7); 640×360: 90 high at x = 240."""
    from autogaze_client.visualization.drawing import band_layout

    assert [band_layout(i, 3, 10, 10) for i in range(3)] == [(3, 0, 4, 4), (3, 3, 4, 4), (3, 6, 4, 4)]
    assert band_layout(1, 4, 640, 360) == (240, 90, 160, 90)


def test_effective_overlay_keeps_one_colour_a_cell():
    image = ag.fixation_effective_scale_mask_rgba(
        [cell(7, 3, 3), cell(2, 0, 0), box(0.5, 0.5, 0.2, 0.2, 4)], 28, 28
    )
    assert at(image, 6, 6) == ORANGE
    assert at(image, 14, 14) == (0, 185, 255, 255)
    assert (image[..., :3].any(axis=2)).sum() == 8


def test_without_a_source_only_scale_rows_differ():
    points = [cell(2, 0, 0), cell(4, 3, 3)]
    overlay = ag.fixation_scale_mask_rgba(points, 16, 16)
    for mode in AutoGazeMaskVisualizationMode:
        image = ag.fixation_mask_rgba(points, 16, 16, 1.0, mode)
        assert (image == overlay).all() == (mode is not AutoGazeMaskVisualizationMode.SCALE_ROWS)


def test_into_buffers():
    """§4: the old size of a buffer never errs; a wrong source does."""
    points, source = [cell(2, 0, 0)], solid(4, 4, 9, 9, 9, 255)
    for start in (0, 7, 500):
        out = bytearray(start)
        ag.fixation_scale_mask_rgba_into(points, 4, 4, 1.0, out)
        assert out == ag.fixation_scale_mask_rgba(points, 4, 4).tobytes()
        ag.fixation_image_mask_only_rgba_into(source, points, 4, 4, 1.0, 0.5, out)
        assert out == ag.fixation_image_mask_only_rgba(source, points, 4, 4, 1.0, 0.5).tobytes()
        ag.fixation_image_overlay_mask_rgba_into(source, points, 4, 4, 1.0, 0.5, out)
        assert out == ag.fixation_image_overlay_mask_rgba(source, points, 4, 4, 1.0, 0.5).tobytes()
        ag.fixation_scale_rows_mask_rgba_into(points, 4, 4, 1.0, out)
        assert out == ag.fixation_scale_rows_mask_rgba(points, 4, 4).tobytes()
        ag.fixation_effective_scale_mask_rgba_into(points, 4, 4, 1.0, out)
        assert out == ag.fixation_effective_scale_mask_rgba(points, 4, 4).tobytes()
        ag.fixation_mask_rgba_into(points, 4, 4, 1.0, AutoGazeMaskVisualizationMode.SCALE_ROWS, out)
        assert out == ag.fixation_scale_rows_mask_rgba(points, 4, 4).tobytes()
    with pytest.raises(InvalidInputError, match=r"source is uint8 \[64\]; it must be uint8 RGBA \[3, 3, 4\]"):
        ag.fixation_image_overlay_mask_rgba(source.tobytes(), points, 3, 3)


@pytest.mark.parametrize(
    ("mode", "spellings"),
    [
        (AutoGazeVisualizationMode.FULL_BLEND, "blend full alpha alphablend alpha-blend"),
        (AutoGazeVisualizationMode.INTERFRAME, "inter-frame video video-encoding delta"),
        (AutoGazeMaskGeometryMode.NATIVE, "raw upstream nvidia multiscale multi-scale"),
        (
            AutoGazeMaskGeometryMode.DEDUPLICATED,
            "dedup dedupe union union-dedup union-deduplicated non-overlap non-overlapping",
        ),
        (
            AutoGazeMaskGeometryMode.EFFECTIVE,
            "projected finest finest-grid sparse-footprint token-footprint",
        ),
        (AutoGazeMaskVisualizationMode.OVERLAY, "combined union native native-overlay"),
        (
            AutoGazeMaskVisualizationMode.IMAGE_OVERLAY,
            "image input-overlay source-overlay alpha-overlay alpha-blend-overlay",
        ),
        (
            AutoGazeMaskVisualizationMode.IMAGE_MASK_ONLY,
            "mask-only image-mask masked-image input-mask-only source-mask-only",
        ),
        (AutoGazeMaskVisualizationMode.SCALE_ROWS, "rows per-scale upstream nvidia"),
    ],
)
def test_spellings(mode, spellings):
    """§3, §4, §5: names and other spellings, trimmed, in any case; underscores are not accepted."""
    for spelling in [*spellings.split(), mode.as_str()]:
        assert type(mode).parse(f"  {spelling.upper()} ") is mode
    assert str(mode) == mode.as_str() == mode.value
    with pytest.raises(InvalidInputError, match="use one of"):
        type(mode).parse("full_blend")
