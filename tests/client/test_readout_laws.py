"""Laws that every readout keeps, and a plain loop over integers as the oracle of order."""

from __future__ import annotations

import numpy as np
from autogaze_client import (
    FrameFixationTrace,
    SparseReadoutGrid,
    SparseReadoutOptions,
    SparseReadoutRect,
    SparseVideoPatchGeometry,
    SparseVideoReadoutGrid,
    SparseVideoReadoutOptions,
    SparseVideoReadoutProjection,
    fixation_image_mask_tensor,
    fixation_points_to_readout_tokens,
    frame_readout_tokens_to_video_tokens,
    generated_to_video_readout_tokens,
    readout_rects_to_tokens,
    trace_to_frame_readout_tokens,
    trace_to_video_readout_tokens,
    video_readout_tokens_to_coords,
)
from client_helpers import decode
from hypothesis import given
from hypothesis import strategies as st

SIDE = st.integers(1, 12)
GRID = st.builds(SparseReadoutGrid, SIDE, SIDE)


@st.composite
def clips(draw, max_frames=5):
    """Cells of any grids as float32 rows, with confidences of 0 (padding) and above."""
    frames = draw(st.integers(1, max_frames))
    cells = []
    for _ in range(draw(st.integers(0, 10))):
        grid = draw(st.sampled_from([1, 2, 4, 7, 14, 28]))
        row, col = draw(st.integers(0, grid - 1)), draw(st.integers(0, grid - 1))
        frame, confidence = draw(st.integers(0, frames - 1)), draw(st.sampled_from([0.0, 0.3, 1.0]))
        cells.append((frame, (col + 0.5) / grid, (row + 0.5) / grid, 1 / grid, 1 / grid, confidence, grid))
    rows = np.array(sorted(cells, key=lambda cell: cell[0]), np.float32).reshape(len(cells), 7)
    return FrameFixationTrace.from_array(rows, frames, np.zeros(frames))


@st.composite
def frame_tokens(draw):
    grid = draw(GRID)
    ids = st.lists(st.integers(0, grid.token_count - 1), max_size=6)
    return draw(st.lists(ids, min_size=1, max_size=6)), grid


def cells_of(points, height, width, dilation=0):
    """The oracle: integer ranges of each shown cell, in order."""
    for point in points:
        if point.confidence > 0:
            col, row = (int(place * point.grid) for place in (point.x, point.y))
            yield (
                max(row * height // point.grid - dilation, 0),
                min(-(-(row + 1) * height // point.grid) + dilation, height),
                max(col * width // point.grid - dilation, 0),
                min(-(-(col + 1) * width // point.grid) + dilation, width),
            )


def met(cells, width):
    tokens = dict.fromkeys(
        r * width + c for r0, r1, c0, c1 in cells for r in range(r0, r1) for c in range(c0, c1)
    )
    return list(tokens)


@given(clips(), GRID, st.integers(0, 2), st.one_of(st.none(), st.integers(0, 9)))
def test_frames_are_read_out_as_a_loop_over_integers_would(trace, grid, dilation, cap):
    options = SparseReadoutOptions(dilation=dilation, max_tokens_per_frame=cap)
    found = [tokens.tolist() for tokens in trace_to_frame_readout_tokens(trace, grid, options)]
    expected = [
        met(cells_of(frame.points, grid.height, grid.width, dilation), grid.width)[:cap]
        for frame in trace.frames
    ]
    assert found == expected


@given(clips(), GRID, SIDE, SIDE, st.integers(1, 3), st.integers(0, 1), st.data())
def test_clips_are_read_out_as_a_loop_over_integers_would(
    trace, image, height, width, tubelet, dilation, data
):
    bins = -(-len(trace) // tubelet)
    cap = data.draw(st.one_of(st.none(), st.integers(0, 20)))
    per_frame = SparseReadoutOptions(max_tokens_per_frame=data.draw(st.one_of(st.none(), st.integers(0, 9))))
    video = SparseVideoReadoutGrid(bins, height, width)
    found = trace_to_video_readout_tokens(
        trace, image, video, per_frame, SparseVideoReadoutOptions(tubelet, dilation, 0, cap)
    )
    expected: dict[int, None] = {}
    for index, tokens in enumerate(trace_to_frame_readout_tokens(trace, image, per_frame)):
        ranges = (
            (
                max(row * height // image.height - dilation, 0),
                min(-(-(row + 1) * height // image.height) + dilation, height),
                max(col * width // image.width - dilation, 0),
                min(-(-(col + 1) * width // image.width) + dilation, width),
            )
            for row, col in (divmod(token, image.width) for token in tokens.tolist())
        )
        first = index // tubelet * height * width
        expected |= dict.fromkeys(first + token for token in met(ranges, width))
    assert found.tolist() == list(expected)[:cap]


@given(frame_tokens())
def test_projection_to_the_same_grid_is_the_identity(sample):
    frames, grid = sample
    video = SparseVideoReadoutGrid(len(frames), grid.height, grid.width)
    found = frame_readout_tokens_to_video_tokens(frames, grid, video)
    expected = [
        index * grid.token_count + token
        for index, tokens in enumerate(frames)
        for token in dict.fromkeys(tokens)
    ]
    assert found.tolist() == expected


@given(st.integers(1, 64), st.integers(1, 64), st.data())
def test_a_cell_read_out_on_its_own_grid_is_itself(tiles, grid, data):
    """Also across tiles, where the extent counts the cells of all tiles and grid those of one."""
    side = tiles * grid
    row, col = data.draw(st.integers(0, side - 1)), data.draw(st.integers(0, side - 1))
    cell = np.array([[(col + 0.5) / side, (row + 0.5) / side, 1 / side, 1 / side, 1, grid]], np.float32)
    found = fixation_points_to_readout_tokens(cell, SparseReadoutGrid(side, side))
    assert found.tolist() == [row * side + col]


@given(clips(), GRID, st.integers(0, 4))
def test_coverage_grows_with_dilation(trace, grid, dilation):
    smaller, larger = (
        trace_to_frame_readout_tokens(trace, grid, SparseReadoutOptions(dilation=d))
        for d in (dilation, dilation + 1)
    )
    for less, more in zip(smaller, larger, strict=True):
        assert set(less.tolist()) <= set(more.tolist())
    bins = SparseVideoReadoutGrid(len(trace), 5, 6)
    less, more = (
        trace_to_video_readout_tokens(trace, grid, bins, None, SparseVideoReadoutOptions(dilation=d))
        for d in (dilation, dilation + 1)
    )
    assert set(less.tolist()) <= set(more.tolist())


@given(clips(), GRID, SIDE, SIDE, st.integers(1, 4))
def test_a_tubelet_holds_the_union_of_its_frames(trace, image, height, width, tubelet):
    bins = -(-len(trace) // tubelet)
    area = height * width
    joined = trace_to_video_readout_tokens(
        trace, image, SparseVideoReadoutGrid(bins, height, width), None, SparseVideoReadoutOptions(tubelet)
    )
    single = trace_to_video_readout_tokens(trace, image, SparseVideoReadoutGrid(len(trace), height, width))
    union = {token // area // tubelet * area + token % area for token in single.tolist()}
    assert set(joined.tolist()) == union
    assert len(joined) == len(union)


@given(st.integers(1, 5), SIDE, SIDE, st.integers(0, 2**32 - 1), st.data())
def test_coords_invert_tokens(bins, height, width, batch, data):
    grid = SparseVideoReadoutGrid(bins, height, width)
    tokens = data.draw(st.lists(st.integers(0, grid.token_count - 1), max_size=20))
    coords = video_readout_tokens_to_coords(tokens, grid, batch)
    assert coords.shape == (len(tokens), 4)
    assert [grid.token_index(*place) for _, *place in coords.tolist()] == tokens
    assert [grid.token_coords(token) for token in tokens] == [tuple(place) for _, *place in coords.tolist()]
    assert (coords[:, 0] == batch).all()


@given(clips(), GRID, st.integers(0, 30))
def test_padded_slots_never_show(trace, grid, least):
    """Padding points, and cells of confidence 0, change nothing, however many there are."""
    shown = trace.rows[trace.rows[:, 5] > 0]
    stops = np.zeros(len(trace))
    bare = FrameFixationTrace.from_array(shown, len(trace), stops)
    padded = FrameFixationTrace.from_array(trace.rows, len(trace), stops, min_len=least)
    video = SparseVideoReadoutGrid(len(trace), grid.height, grid.width)
    assert (
        trace_to_video_readout_tokens(padded, grid, video).tolist()
        == trace_to_video_readout_tokens(bare, grid, video).tolist()
    )
    for with_padding, without in zip(padded.frames, bare.frames, strict=True):
        np.testing.assert_array_equal(
            fixation_image_mask_tensor(1, 9, 11, with_padding), fixation_image_mask_tensor(1, 9, 11, without)
        )


@given(st.lists(st.tuples(st.integers(0, 264), st.booleans()), min_size=1, max_size=30), GRID, st.data())
def test_padded_slots_of_an_output_never_show(slots, grid, data):
    """Wherever padding lies between choices, and whatever id it holds."""
    first = data.draw(st.integers(0, len(slots)))
    counts = [first, len(slots) - first]
    frame = [0] * counts[0] + [1] * counts[1]
    ids = [token + 265 * t for (token, _), t in zip(slots, frame, strict=True)]
    padded = [flag for _, flag in slots]
    shown = [index for index, flag in enumerate(padded) if not flag]
    bare = decode([ids[i] for i in shown], counts=[sum(frame[i] == t for i in shown) for t in (0, 1)])
    video = SparseVideoReadoutGrid(2, grid.height, grid.width)
    found = generated_to_video_readout_tokens(decode(ids, padded, counts), None, 0, grid, video)
    assert found.tolist() == generated_to_video_readout_tokens(bare, None, 0, grid, video).tolist()


EDGE = st.integers(0, 64)


@given(st.lists(st.tuples(EDGE, EDGE, EDGE, EDGE), max_size=8), GRID)
def test_a_rect_gives_the_tokens_that_it_overlaps(edges, grid):
    """Touching is no overlap; edges of 64ths make it exact."""
    rects = [SparseReadoutRect(*(edge / 64 for edge in rect)) for rect in edges]
    expected = met(
        (
            (
                min(y0, y1) * grid.height // 64,
                -(-max(y0, y1) * grid.height // 64),
                min(x0, x1) * grid.width // 64,
                -(-max(x0, x1) * grid.width // 64),
            )
            for x0, y0, x1, y1 in edges
            if x0 != x1 and y0 != y1
        ),
        grid.width,
    )
    assert readout_rects_to_tokens(rects, grid).tolist() == expected


@given(clips(), GRID, st.integers(0, 12), st.integers(0, 40), st.integers(0, 60))
def test_caps_and_minima_are_kept(trace, image, per_frame, cap, least):
    options = SparseReadoutOptions(max_tokens_per_frame=per_frame, max_fixations_per_frame=per_frame)
    assert all(len(tokens) <= per_frame for tokens in trace_to_frame_readout_tokens(trace, image, options))
    video = SparseVideoReadoutGrid(len(trace), 3, 4)
    free = trace_to_video_readout_tokens(trace, image, video)
    for most in (cap, None):
        found = trace_to_video_readout_tokens(
            trace, image, video, None, SparseVideoReadoutOptions(min_tokens=least, max_tokens=most)
        ).tolist()
        limit = video.token_count if most is None else min(most, video.token_count)
        assert len(found) == min(max(len(free), least), limit)
        assert len(set(found)) == len(found)
        shared = min(len(free), len(found))
        assert found[:shared] == free.tolist()[:shared]


@given(st.integers(1, 4), st.integers(1, 4), SIDE, SIDE, st.integers(1, 3))
def test_a_projection_carries_the_tubelet_size(bins, tubelet, rows, cols, patch):
    geometry = SparseVideoPatchGeometry.square_patch(
        bins * tubelet, rows * patch, cols * patch, tubelet, patch
    )
    projection = SparseVideoReadoutProjection.from_patch_geometry(SparseReadoutGrid(rows, cols), geometry)
    assert projection.video_options.tubelet_size == tubelet
    assert projection.video_grid == SparseVideoReadoutGrid(bins, rows, cols)
    assert projection.video_grid.temporal_bins * projection.video_options.tubelet_size == geometry.frames


@given(clips(max_frames=1), st.integers(1, 40), st.integers(1, 40))
def test_pixel_masks_are_unions_of_integer_cells(trace, height, width):
    expected = np.zeros((height, width), np.float32)
    for r0, r1, c0, c1 in cells_of(trace.frames[0].points, height, width):
        expected[r0:r1, c0:c1] = 1
    mask = fixation_image_mask_tensor(2, height, width, trace.frames[0])
    np.testing.assert_array_equal(mask, np.stack([expected[None]] * 2))
