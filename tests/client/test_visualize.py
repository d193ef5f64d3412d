from __future__ import annotations

import json

import numpy as np
import pytest
from autogaze_client import (
    AutoGazeInferenceMode,
    FixationPoint,
    FixationSet,
    GazeResult,
    InvalidInputError,
    SourceSize,
    VideoReader,
    contact_sheet,
    legend_strip,
    scale_color,
    scale_mask_image,
    side_by_side,
    write_report,
)
from client_helpers import generated_for

GREY = np.full((56, 56, 3), 120, np.uint8)
COARSE = FixationPoint.with_grid_extent(0.25, 0.25, 0.5, 0.5, 1, 2)
FINE = FixationPoint.with_grid_extent(1.5 / 14, 1.5 / 14, 1 / 14, 1 / 14, 1, 14)


@pytest.mark.parametrize(
    ("grids", "color"),
    [((1, 2), (255, 180, 0)), ((3, 4), (60, 220, 120)), ((5, 7), (0, 185, 255)), ((8, 28), (230, 110, 255))],
)
def test_palette(grids, color):
    """visualization §4, the palette table."""
    assert [scale_color(grid) for grid in grids] == [color, color]


def test_cells_are_outlined_exactly_and_the_rest_is_dim():
    image = scale_mask_image(GREY, FixationSet((COARSE,)))
    orange = np.array(scale_color(2))
    assert (image[0, :28] == orange).all()
    assert (image[27, :28] == orange).all()
    assert (image[:28, 27] == orange).all()
    assert (image[28:] < 50).all()
    assert (image[:, 28:] < 50).all()
    np.testing.assert_allclose(image[5, 5], 0.72 * 120 + 0.28 * orange, atol=1)


@pytest.mark.parametrize("points", [(COARSE, FINE), (FINE, COARSE)])
def test_fine_cells_lie_on_top_in_any_order(points):
    image = scale_mask_image(GREY, FixationSet(points))
    assert tuple(image[4, 4]) == scale_color(14)
    assert tuple(image[7, 7]) == scale_color(14)


def test_padding_is_not_drawn():
    blank = scale_mask_image(GREY, FixationSet(()))
    np.testing.assert_array_equal(scale_mask_image(GREY, FixationSet((FixationPoint.padding(),))), blank)
    assert (blank < 50).all()


def test_a_cell_of_unknown_grid_takes_the_nearest_color():
    point = FixationPoint.new(0.5, 0.5, 1 / 7, 1)
    assert tuple(scale_mask_image(GREY, FixationSet((point,)))[24, 24]) == scale_color(7)


def test_the_frame_is_left_alone():
    frame = GREY.copy()
    scale_mask_image(frame, FixationSet((COARSE, FINE)))
    np.testing.assert_array_equal(frame, GREY)


def test_side_by_side():
    image = side_by_side(GREY, GREY[:, :10] + 1, gap=2)
    assert image.shape == (56, 68, 3)
    assert image[0, 0, 0] == 120
    assert image[0, -1, 0] == 121
    with pytest.raises(InvalidInputError, match="56 and 10 rows high"):
        side_by_side(GREY, GREY[:10])


def test_contact_sheet():
    images = [np.full((4, 6, 3), 10 * i, np.uint8) for i in range(5)]
    sheet = contact_sheet(images, 2, gap=1)
    assert sheet.shape == (3 * 5 + 1, 2 * 7 + 1, 3)
    assert [sheet[1 + 5 * (i // 2), 1 + 7 * (i % 2), 0] for i in range(5)] == [0, 10, 20, 30, 40]
    with pytest.raises(InvalidInputError, match="at least one"):
        contact_sheet([], 2)
    with pytest.raises(InvalidInputError, match="image 1 is 56x56, the first 6x4"):
        contact_sheet([images[0], GREY], 2)


def test_legend_names_scales_in_their_color():
    strip = legend_strip(300, [(2, "2x2"), (14, "14x14")])
    colors = {tuple(pixel) for pixel in strip.reshape(-1, 3)}
    assert strip.shape == (28, 300, 3)
    assert {scale_color(2), scale_color(14)} <= colors
    assert scale_color(4) not in colors


@pytest.mark.parametrize("knob", ["alpha", "dim"])
def test_shares_outside_the_unit_range_are_refused(knob):
    with pytest.raises(InvalidInputError, match=f"{knob} is 2"):
        scale_mask_image(GREY, FixationSet(()), **{knob: 2})


def result_for(frames: int) -> GazeResult:
    generated = generated_for(frames, slots=8)
    mode = AutoGazeInferenceMode.RESIZE_TO_MODEL_INPUT
    return GazeResult(generated, generated.fixations(0), mode, SourceSize(frames, 48, 64))


def test_report(tmp_path, video):
    paths = write_report(tmp_path / "out", video, result_for(20), {"elapsed": 12.5}, start_frame=3)
    assert len(json.loads(paths.gaze.read_text())["frames"]) == 20
    metrics = json.loads(paths.metrics.read_text())
    assert metrics["tokens_per_frame"] == [7] * 20
    assert metrics["stage_ms"] == {"elapsed": 12.5}
    panels = list(VideoReader(paths.mask_video))
    assert len(panels) == 20
    assert panels[0].shape[1] >= 2 * 64
    # The left panel is the input: the fixture's brightness of frame 3.
    assert abs(float(panels[0][:48, :60].mean()) - 35) < 4
    assert paths.contact_sheet.read_bytes().startswith(b"\x89PNG")


def test_a_report_of_every_third_frame_plays_at_the_same_pace(tmp_path, video):
    paths = write_report(tmp_path, video, result_for(10), {}, start_frame=4, frame_stride=3)
    panels = VideoReader(paths.mask_video)
    assert panels.fps == VideoReader(video).fps / 3
    levels = [float(panel[:48, :60].mean()) for panel in panels]
    # The fixture's brightness is 5 · frame + 20.
    assert np.abs(np.array(levels) - (5 * (4 + 3 * np.arange(10)) + 20)).max() < 4
    with pytest.raises(
        InvalidInputError, match=r"only 11; pass the video .* with its start_frame and frame_stride"
    ):
        write_report(tmp_path, video, result_for(12), {}, start_frame=4, frame_stride=3)


def test_a_report_on_another_video_is_refused(tmp_path, video):
    with pytest.raises(InvalidInputError, match="only 37; pass the video that was gazed at"):
        write_report(tmp_path, video, result_for(40), {})
    generated = generated_for(1)
    mode = AutoGazeInferenceMode.RESIZE_TO_MODEL_INPUT
    other = GazeResult(generated, generated.fixations(0), mode, SourceSize(1, 48, 32))
    with pytest.raises(InvalidInputError, match=r"32x48 frames, but clip\.mp4 has 64x48"):
        write_report(tmp_path, video, other, {})
