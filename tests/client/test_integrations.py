"""The integration examples run, gather what they claim, and save what their page says."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from autogaze_client import FixationPoint, FixationSet, FrameFixationTrace

torch = pytest.importorskip("torch", reason="torch is not installed")

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "integrations"
sys.path.insert(0, str(EXAMPLES))
demo_gaze, qwen_vl, siglip_vit, vjepa = map(
    importlib.import_module, ("demo_gaze", "qwen_vl", "siglip_vit", "vjepa")
)

CLIP = demo_gaze.demo_clips()[0]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def everything(frames: int) -> FrameFixationTrace:
    """All 265 cells of every frame."""
    cells = [
        FixationPoint.with_grid_extent((col + 0.5) / grid, (row + 0.5) / grid, 1 / grid, 1 / grid, 1, grid)
        for grid in siglip_vit.GRIDS
        for row in range(grid)
        for col in range(grid)
    ]
    return FrameFixationTrace([FixationSet(cells)] * frames)


def test_the_page_has_the_figures_that_the_examples_compute():
    text = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([\d,]+) \| ([\d,]+) \| ([\d.]+%) \|$", text, re.MULTILINE)
    computed = [
        (name, baseline, f"{saving.kept:,}", f"{saving.dense:,}", f"{1 - saving.kept / saving.dense:.1%}")
        for name, module in (("siglip_vit", siglip_vit), ("vjepa", vjepa), ("qwen_vl", qwen_vl))
        for baseline, saving in module.savings().items()
    ]
    assert rows == computed
    # Which weights, and that the video is no fair test of them, must be said beside the figures.
    assert "open checkpoint" in text
    assert "trained on this video" in text


@pytest.mark.parametrize("name", ["siglip_vit", "vjepa", "qwen_vl"])
def test_examples_run(name):
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"tokens, \d+\.\d% saved", done.stdout)


def test_the_fixture_is_rewritten_from_a_gaze_file(tmp_path):
    points = [{"grid": 4, "x": 0.875, "y": 0.125, "confidence": 0.25}]
    gaze = {"mode": "resize", "source_size": {}, "frames": [{"points": points, "stop_probability": 1.0}]}
    source = tmp_path / "gaze.json"
    source.write_text(json.dumps(gaze))
    (clip,) = demo_gaze.demo_clips(demo_gaze.write_fixture(source, tmp_path / "fixture.json"))
    assert clip.rows.tolist() == [[0, 0.875, 0.125, 0.25, 0.25, 0.25, 4]]
    assert clip.frames[0].stop_probability == 1.0


def test_siglip_embeds_each_cell_at_its_scale():
    gazed = siglip_vit.gazed_patches(CLIP)
    assert len(gazed.patch) == sum(len(frame) for frame in CLIP.frames)
    dense = siglip_vit.gazed_patches(everything(1))
    assert dense.patch.tolist() == [*range(4), *range(16), *range(49), *range(196)]


def test_siglip_sees_no_later_frame():
    model, gazed = siglip_vit.MultiScaleViT().eval(), siglip_vit.gazed_patches(CLIP)
    video = torch.rand(len(CLIP), 3, 224, 224)
    changed = video.clone()
    changed[8:] = 0
    before, after = model(video, gazed), model(changed, gazed)
    early = torch.from_numpy(gazed.frame < 8)
    torch.testing.assert_close(before[early], after[early])
    assert not torch.allclose(before[~early], after[~early])


def test_siglip_frame_alone_is_the_frame_in_a_clip():
    """The first frame's tokens do not depend on how many frames follow."""
    model, video = siglip_vit.MultiScaleViT().eval(), torch.rand(2, 3, 224, 224)
    first = FrameFixationTrace(CLIP.frames[:1])
    alone = model(video[:1], siglip_vit.gazed_patches(first))
    both = model(video, siglip_vit.gazed_patches(FrameFixationTrace(CLIP.frames[:2])))
    torch.testing.assert_close(both[: len(alone)], alone)


def test_vjepa_gathers_the_dense_embedding():
    coords = vjepa.gazed_tubelets([CLIP])
    model, video = vjepa.TubeletEncoder().eval(), torch.rand(1, 3, 16, 256, 256)
    grid = vjepa.GEOMETRY.readout_grid()
    every = torch.cartesian_prod(*(torch.arange(n) for n in (1, grid.temporal_bins, grid.height, grid.width)))
    dense = model.tokens(video, every)
    index = torch.tensor([grid.token_index(*row) for row in coords[:, 1:].tolist()])
    torch.testing.assert_close(model.tokens(video, coords), dense[index])
    assert len(set(index.tolist())) == len(index)


def test_vjepa_bins_are_unions_of_their_frames():
    """A cell that only the last frame gazes at lies in the last bin: the projection knows the tubelets."""
    cell = FixationPoint.with_grid_extent(0.25, 0.25, 0.5, 0.5, 1, 2)
    trace = FrameFixationTrace([*[FixationSet([])] * 15, FixationSet([cell])])
    coords = vjepa.gazed_tubelets([trace])
    assert coords[:, 1].unique().tolist() == [7]
    assert len(coords) == 64
    assert np.bincount(vjepa.gazed_tubelets([CLIP, trace], tokens=100)[:, 0].numpy()).tolist() == [100, 100]


def test_qwen_merges_kept_patches_as_it_would_among_all():
    grid = qwen_vl.merged_grid(16, 728, 1288)
    kept = qwen_vl.kept_patches(CLIP, grid)
    merger, patches = qwen_vl.PatchMerger().eval(), torch.rand(grid.token_count * 4, 16)
    torch.testing.assert_close(merger(patches[kept.patches]), merger(patches)[kept.merged])
    assert (kept.merged.diff() > 0).all()
    assert [grid.token_index(*place) for place in kept.positions.tolist()] == kept.merged.tolist()


def test_gazing_at_everything_saves_nothing():
    trace = everything(16)
    grid = qwen_vl.merged_grid(16, 728, 1288)
    assert len(qwen_vl.kept_patches(trace, grid).merged) == grid.token_count
    assert len(vjepa.gazed_tubelets([trace])) == vjepa.GEOMETRY.readout_grid().token_count
