"""``pip install .`` with base dependencies only gives everything the readout needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import importlib.util, sys
import numpy as np
import autogaze_client as ag

heavy = ("torch", "onnxruntime", "PIL", "av", "rich", "cupy")
assert not [name for name in heavy if importlib.util.find_spec(name)], "the environment is not bare"
for name in ag.__all__:
    getattr(ag, name)

cells = np.array([[0, 0.25, 0.25, 0.5, 0.5, 1, 2], [1, 0.875, 0.875, 0.25, 0.25, 0.8, 4]], np.float32)
trace = ag.FrameFixationTrace.from_array(cells, 2, [0, 0])
grid = ag.SparseReadoutGrid(4, 4)
assert [t.tolist() for t in ag.trace_to_frame_readout_tokens(trace, grid)] == [[0, 1, 4, 5], [15]]
geometry = ag.SparseVideoPatchGeometry.square_patch(2, 64, 64, 2, 16)
projection = ag.SparseVideoReadoutProjection.from_patch_geometry(grid, geometry)
rows = ag.trace_to_video_readout_coord_tensor(trace, projection)
assert rows.tolist() == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0], [0, 0, 1, 1], [0, 0, 3, 3]]
mask = ag.fixation_image_mask_tensor(1, 8, 8, trace.frames[0])
image = np.random.default_rng(0).random((1, 3, 8, 8))
tokens = ag.tokenize_masked_image_pyramid(ag.apply_image_mask(image, mask), mask, [ag.ImagePyramidLevel(4, 4)])
assert ag.sparsify_image_pyramid_tokens(tokens, 3).indices.tolist() == [[0, 1, 4]]
video = np.stack([np.zeros_like(image), image], axis=1)
run = ag.patch_diff_readout_points(video, ag.AutoGazePatchDiffConfig(2, 0.1))
assert run.stats.active == 4
store = ag.AutoGazeTraceStore.from_traces([trace])
assert ag.AutoGazeTraceStore.from_safetensors(store.to_safetensors()).trace(0) == trace
assert ag.format_fps(ag.fps_from_millis(40)) == "025.0"
loaded = {name.split(".")[0] for name in sys.modules}
assert not loaded & {"autogaze_backend", "autogaze_export"}
print("bare install works")
"""


def pip(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_bare_environment_reads_out(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "bare"], check=True, timeout=120)
    python = tmp_path / "bare" / "bin" / "python"
    downloaded = pip(python, "download", "--no-deps", "--dest", str(tmp_path), "safetensors>=0.4.3")
    if downloaded.returncode:
        pytest.skip(f"pip cannot download here: {downloaded.stderr.strip().splitlines()[-1:]}")
    installed = pip(python, "install", str(ROOT))
    assert installed.returncode == 0, installed.stderr
    done = subprocess.run([python, "-c", SCRIPT], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "bare install works"
