"""The device's preprocessing against the host's, bit for bit: plain torch and the kernels.

Without a GPU the kernels run in Triton's interpreter, on small inputs, and are compiled for a GPU without being run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from autogaze_backend.adaptation import TargetScales, resolve_target_scales
from autogaze_backend.preprocessing import (
    PreprocessingConfig,
    normalise,
    preprocess,
    resize_exact,
    resize_to_input,
)
from autogaze_backend.tiling import TileLayout
from autogaze_client import AutoGazeInferenceMode, InvalidInputError
from goldens import clips
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs torch; pip install 'autogaze-triton[torch]'")

from autogaze_backend.torch_engine import pillow_resize  # noqa: E402
from autogaze_backend.torch_engine.preprocessing import DevicePreprocessing  # noqa: E402

# Triton's interpreter and numpy 1.26; not ours.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")

GRID, FULL = AutoGazeInferenceMode.TILED_RESIZE_TO_GRID, AutoGazeInferenceMode.TILED_FULL_RESOLUTION
CUDA = torch.cuda.is_available()
# Side of the small inputs, and the processor's settings for them.
SIDE = 24
SMALL = PreprocessingConfig(shortest_edge=SIDE)


@pytest.fixture(params=["cpu-torch", "cpu-triton", "cuda-torch", "cuda-triton"])
def open_device(request):
    """Makes the preprocessing of a device and an implementation."""
    device, implementation = request.param.split("-")
    if device == "cuda" and not CUDA:
        pytest.skip("needs a CUDA device, and this machine has none")
    if implementation == "triton":
        kernels = pytest.importorskip(
            "autogaze_backend.torch_engine.preprocessing_kernels",
            reason="needs triton; pip install --no-deps triton==3.6.0",
        )
        if device == "cpu" and not kernels.INTERPRETED:
            pytest.skip(
                "the interpreter is off (TRITON_INTERPRET), since the kernels run on this machine's GPU"
            )
    return lambda config=SMALL, side=SIDE: DevicePreprocessing(
        config, side, device, implementation=implementation
    )


def noise(frames: int, height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, channels), dtype=np.uint8)


def assert_same_bits(found, expected: np.ndarray) -> None:
    found = found.cpu().numpy()
    assert found.dtype == expected.dtype
    kind = f"u{expected.itemsize}"
    np.testing.assert_array_equal(found.view(kind), np.ascontiguousarray(expected).view(kind))


# Sizes of frames, small: square, tall, wide, upscaled, odd; and whether there is alpha.
SIZES = st.tuples(st.integers(1, 70), st.integers(1, 70))
CHANNELS = st.sampled_from([3, 4])


def examples(prepared: DevicePreprocessing, many: int) -> int:
    """The interpreter is some hundred times slower."""
    interpreted = prepared.implementation == "triton" and prepared.device.type == "cpu"
    return 8 if interpreted else many


# The processor's size can be the model's or not.
@pytest.mark.parametrize(
    "config",
    [SMALL, PreprocessingConfig(shortest_edge=SIDE + 7, image_mean=(0.5, 0.4, 0.3))],
    ids=["one-size", "two-sizes"],
)
def test_the_resize_mode_equals_the_host(open_device, config):
    prepared = open_device(config)

    @settings(max_examples=examples(prepared, 60), deadline=None)
    @given(SIZES, CHANNELS, st.integers(1, 3))
    def holds(size, channels, frames):
        clip = noise(frames, *size, channels)
        if max(size) > 64 * min(size):
            with pytest.raises(InvalidInputError, match="64 times longer than wide"):
                prepared.clip(clip)
            return
        assert_same_bits(prepared.clip(clip), preprocess(clip, config, SIDE))

    holds()


@pytest.mark.parametrize(
    "size", [(SIDE, SIDE), (2 * SIDE, 2 * SIDE), (SIDE, 60), (60, SIDE), (31, 31), (5, 5), (1, 40), (80, 3)]
)
@pytest.mark.parametrize("channels", [3, 4])
def test_the_resize_mode_equals_the_host_where_paths_differ(open_device, size, channels):
    clip = noise(2, *size, channels)
    assert_same_bits(open_device().clip(clip), preprocess(clip, SMALL, SIDE))


@pytest.mark.parametrize(
    "size",
    [(224, 224), (448, 448), (480, 640), (720, 1280), (1080, 1920), (1920, 1080), (100, 75), (333, 517)],
)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_released_settings_at_video_sizes(size, device):
    if device == "cuda" and not CUDA:
        pytest.skip("needs a CUDA device, and this machine has none")
    config = PreprocessingConfig()
    clip = clips.synthetic_clip(2, *size, 5)
    clip[1] = noise(1, *size)[0]
    prepared = DevicePreprocessing(config, 224, device)
    assert prepared.implementation == ("triton" if device == "cuda" else "torch")
    assert_same_bits(prepared.clip(clip), preprocess(clip, config, 224))


@pytest.mark.parametrize("mode", [GRID, FULL])
def test_tiles_equal_the_hosts_rows(open_device, mode):
    prepared = open_device()

    @settings(max_examples=examples(prepared, 40), deadline=None)
    @given(SIZES, CHANNELS, st.data())
    def holds(size, channels, data):
        clip = noise(2, *size, channels)
        layout = TileLayout(mode, *size, SIDE)
        start = data.draw(st.integers(0, layout.count - 1))
        stop = data.draw(st.integers(start + 1, min(layout.count, start + 3)))
        expected = np.stack([layout.tile(clip, tile, SMALL) for tile in range(start, stop)])
        assert_same_bits(prepared.tiles(clip, layout, start, stop), expected)

    holds()


@pytest.mark.parametrize("mode", [GRID, FULL])
def test_a_1080p_clip_is_cut_from_one_upload(mode):
    config = PreprocessingConfig()
    prepared = DevicePreprocessing(config, 224, "cuda" if CUDA else "cpu")
    clip = noise(2, 1080, 1920)
    layout = TileLayout(mode, 1080, 1920, 224)
    uploaded = prepared.upload(clip)
    # The upper left, the right edge, the lower row.
    for start, stop in ((0, 2), (8, 10), (40, 45)):
        found = prepared.tiles(uploaded[1:], layout, start, stop)
        expected = np.stack([layout.tile(clip[1:], tile, config) for tile in range(start, stop)])
        assert_same_bits(found, expected)
    assert prepared.tiles(uploaded[:1], layout).shape == (45, 1, 3, 224, 224)


def host_target_tiles(clip: np.ndarray, target: TargetScales, config: PreprocessingConfig, side: int):
    video = normalise(resize_exact(clip, (target.size, target.size)), config)
    return resize_to_input(target.cut(video[None]), side)


@pytest.mark.parametrize(
    ("scales", "patch"), [((56, 112, 196, 392), 14), ((48, 96, 192, 384), 16), ((32, 64, 112, 238), 7)]
)
def test_target_tiles_equal_the_hosts(model, scales, patch):
    target = resolve_target_scales(model().spec, scales, patch)
    config = PreprocessingConfig()
    prepared = DevicePreprocessing(config, 224, "cuda" if CUDA else "cpu")
    for size in ((300, 460), (392, 392), (200, 100)):
        clip = noise(2, *size, 4)
        assert_same_bits(prepared.target_tiles(clip, target), host_target_tiles(clip, target, config, 224))


@pytest.mark.parametrize("tile", [SIDE, SIDE - 5, SIDE + 5])
def test_small_target_tiles_equal_the_hosts(open_device, tile):
    # Two tiles a side, the second mostly padding.
    target = TargetScales((1, 2, 3, tile + 4), 1, 2, tile)
    prepared = open_device()
    for size in ((tile + 4, tile + 4), (60, 20)):
        clip = noise(1, *size)
        expected = host_target_tiles(clip, target, SMALL, SIDE)
        assert_same_bits(prepared.target_tiles(clip, target, 1), expected[1:])
    assert_same_bits(prepared.target_tiles(clip, target, 0, 1), expected[:1])


def test_half_precision_is_the_float32_result_rounded(open_device):
    prepared = open_device()
    for size in ((SIDE, SIDE), (2 * SIDE, 2 * SIDE), (33, 50)):
        clip = noise(1, *size)
        expected = preprocess(clip, SMALL, SIDE).astype(np.float16)
        assert_same_bits(prepared.clip(clip, dtype=torch.float16), expected)
    layout = TileLayout(GRID, 33, 50, SIDE)
    found = prepared.tiles(clip, layout, 1, 2, dtype=torch.float16)
    assert_same_bits(found[0], layout.tile(clip, 1, SMALL).astype(np.float16))


def test_a_tensor_of_any_strides_is_read_in_place(open_device):
    prepared = open_device()
    clip = noise(4, 61, 47, 4)
    uploaded = prepared.upload(clip)
    for view in (np.s_[::2, 3:50, 1:40], np.s_[1:3, :SIDE, :SIDE], np.s_[:, 5:, :, :3]):
        expected = np.ascontiguousarray(clip[view])
        assert_same_bits(prepared.clip(uploaded[view]), preprocess(expected, SMALL, SIDE))
        layout = TileLayout(FULL, *expected.shape[1:3], SIDE)
        assert_same_bits(prepared.tiles(uploaded[view], layout, 0, 1)[0], layout.tile(expected, 0, SMALL))


def test_an_uploaded_clip_is_a_copy(open_device):
    prepared = open_device()
    clip = noise(3, 40, 50)
    kept = clip.copy()
    uploaded = prepared.upload(clip)
    clip[:] = 0
    np.testing.assert_array_equal(uploaded.cpu().numpy(), kept)
    # What a server or a decoder hands over: read-only, turned round, cut.
    kept.flags.writeable = False
    for view in (kept, kept[::-1, :, ::-1], kept[:, 4:, :9]):
        np.testing.assert_array_equal(prepared.upload(view).cpu().numpy(), view)


def test_clips_of_one_size_share_an_upload(open_device):
    prepared = open_device()
    some = [noise(2, 40, 30, seed=1), noise(1, 40, 30, seed=2)[:, ::-1], noise(3, 40, 30, seed=3)]
    found = prepared.clip(prepared.upload(some))
    assert_same_bits(found, np.concatenate([preprocess(clip, SMALL, SIDE) for clip in some]))


@pytest.mark.parametrize("others", [[noise(1, 40, 31)], [noise(1, 40, 30, 4)]])
def test_clips_of_different_sizes_share_none(others):
    with pytest.raises(
        InvalidInputError, match=r"\[40, 30, 3\], \[40, 3.* another height, width or channel count"
    ):
        DevicePreprocessing(SMALL, SIDE, "cpu").upload([noise(1, 40, 30), *others])
    with pytest.raises(InvalidInputError, match="pass at least one clip"):
        DevicePreprocessing(SMALL, SIDE, "cpu").upload([])


def test_the_result_goes_where_it_is_asked_to(open_device):
    prepared = open_device()
    batch = torch.full((3, 2, 3, SIDE, SIDE), -9.0, device=prepared.device)
    for row, size in enumerate([(SIDE, SIDE), (2 * SIDE, 2 * SIDE), (30, 41)]):
        clip = noise(2, *size, seed=row)
        assert prepared.clip(clip, out=batch[row]).data_ptr() == batch[row].data_ptr()
        assert_same_bits(batch[row], preprocess(clip, SMALL, SIDE))
    layout = TileLayout(FULL, 30, 41, SIDE)
    prepared.tiles(clip, layout, 0, 3, out=batch)
    assert_same_bits(batch[2], layout.tile(clip, 2, SMALL))


def test_a_pillow_of_another_rule_resizes_itself(open_device, monkeypatch, caplog):
    prepared = open_device()
    genuine = pillow_resize.resize_pass

    def other(size: int, target: int):
        step = genuine(size, target)
        return replace(step, weights=np.roll(step.weights, 1, axis=0))

    # Our weights, put wrong, stand for a rule that we do not know.
    monkeypatch.setattr(pillow_resize, "resize_pass", other)
    pillow_resize.resize_plan.cache_clear()
    try:
        for size in ((2 * SIDE, 2 * SIDE), (50, 41)):
            clip = noise(2, *size, 4)
            assert_same_bits(prepared.clip(clip), preprocess(clip, SMALL, SIDE))
    finally:
        pillow_resize.resize_plan.cache_clear()
    assert "the host does it" in caplog.text


def test_many_sizes_leave_the_device_with_a_bounded_number_of_tables():
    prepared = DevicePreprocessing(SMALL, SIDE, "cpu")
    for height in range(SIDE, SIDE + 100):
        prepared.clip(np.zeros((1, height, SIDE + 1, 3), np.uint8))
    assert prepared._passes.cache_info().currsize <= 64
    assert prepared._axes.cache_info().currsize <= 64


@pytest.mark.skipif(not CUDA, reason="needs a CUDA device, and this machine has none")
def test_after_the_warm_up_nothing_is_compiled():
    kernels = pytest.importorskip("autogaze_backend.torch_engine.preprocessing_kernels")
    prepared = DevicePreprocessing(SMALL, SIDE, "cuda")
    prepared.warm_up()

    def compiled() -> int:
        return sum(
            len(cache[0])
            for kernel in (kernels.resize_pass_kernel, kernels.cut_kernel)
            for cache in kernel.device_caches.values()
        )

    before = compiled()
    assert before > 0
    for size in ((SIDE, SIDE), (48, 48), (33, 50), (50, 33), (64, 64), (31, 128)):
        for channels in (3, 4):
            for dtype in (torch.float32, torch.float16):
                clip = prepared.upload(noise(3, *size, channels))
                prepared.clip(clip[1:], dtype=dtype)
                for mode in (GRID, FULL):
                    prepared.tiles(clip, TileLayout(mode, *size, SIDE), dtype=dtype)
                for tile in (SIDE, SIDE + 3):
                    prepared.target_tiles(clip, TargetScales((1, 2, 3, tile + 4), 1, 2, tile), dtype=dtype)
    assert compiled() == before


@pytest.mark.skipif(not CUDA, reason="needs a CUDA device, and this machine has none")
def test_frames_of_the_models_size_can_be_captured_in_a_graph():
    prepared = DevicePreprocessing(SMALL, SIDE, "cuda")
    prepared.warm_up()
    frames = prepared.upload(noise(2, SIDE, SIDE))
    out = torch.empty((2, 3, SIDE, SIDE), device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        prepared.clip(frames, out=out)
    for seed in (1, 2):
        clip = noise(2, SIDE, SIDE, seed=seed)
        frames.copy_(torch.from_numpy(clip))
        graph.replay()
        assert_same_bits(out, preprocess(clip, SMALL, SIDE))


COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from autogaze_backend.torch_engine import preprocessing_kernels as kernels

def compiled(kernel, pointers, constants, fused, capability):
    signature = {name: pointers.get(name, "constexpr" if name in constants else "i32") for name in kernel.arg_names}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places)
    options = {"enable_fp_fusion": fused}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm

cut = {"source": "*u8", "out": "*fp32", "table": "*fp32", "row_index": "*i32", "row_weight": "*fp32",
       "column_index": "*i32", "column_weight": "*fp32"}
resize = {"source": "*u8", "out": "*fp16", "table": "*fp32", "first": "*i32", "weights": "*i32"}
for capability in (80, 90):
    for fused in (False, True):
        taps = {"SIDE": 224, "ROW_TAPS": 2, "COLUMN_TAPS": 4, "BLOCK": kernels.BLOCK}
        ptx = compiled(kernels.cut_kernel, cut, taps, fused, capability)["ptx"]
        print("cut", capability, fused, ptx.count("fma.rn.f"))
    shape = {"PRECISION": 22, "VERTICAL": True, "NORMALISE": True, "BLOCK": kernels.BLOCK}
    print("resize", len(compiled(kernels.resize_pass_kernel, resize, shape, True, capability)["cubin"]) > 0)
"""


def test_the_kernels_compile_for_gpus_without_fused_multiply_adds(tmp_path):
    """What the interpreter cannot show: Triton's compiler takes the kernels, and rounds every product."""
    pytest.importorskip("triton", reason="needs triton; pip install --no-deps triton==3.6.0")
    # A file, since the compiler reads the source.
    script = tmp_path / "compile_kernels.py"
    script.write_text(COMPILE)
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    fused = {(line[1], line[2]): int(line[3]) for line in lines if line[0] == "cut"}
    assert fused["80", "False"] == fused["90", "False"] == 0
    # Else the count would tell nothing.
    assert fused["80", "True"] > 0
    assert [line[1] for line in lines if line[0] == "resize"] == ["True", "True"]


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((1, 4, 4, 3), np.float32), "frames are float32; pass uint8"),
        (np.zeros((4, 4, 3), np.uint8), r"shape \[4, 4, 3\].*add a time axis"),
        (np.zeros((1, 4, 4, 1), np.uint8), r"shape \[1, 4, 4, 1\]"),
        (np.zeros((0, 4, 4, 3), np.uint8), "must be at least 1"),
        (torch.zeros((1, 4, 4, 3)), "frames are torch.float32; pass torch.uint8"),
        (torch.zeros((1, 3, 4, 5), dtype=torch.uint8), r"shape \[1, 3, 4, 5\]; pass \[T, H, W, 3\]"),
        (torch.zeros((1, 0, 4, 3), dtype=torch.uint8), "must be at least 1"),
        (
            torch.zeros((1, 4, 4, 3), dtype=torch.uint8, device="meta"),
            "frames lie on meta, and .* runs on cpu",
        ),
        (np.zeros((1, 1, 100, 3), np.uint8), "64 times longer than wide"),
    ],
)
def test_bad_frames_are_refused(frames, message):
    with pytest.raises(InvalidInputError, match=message):
        DevicePreprocessing(SMALL, SIDE, "cpu").clip(frames)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (torch.empty((1, 3, SIDE, SIDE + 1)), r"pass contiguous float32 or float16 \[1, 3, 24, 24\]"),
        (torch.empty((1, 3, SIDE, SIDE), dtype=torch.int8), "out is torch.int8"),
        (torch.empty((1, 3, SIDE, SIDE)).transpose(2, 3), "with strides"),
        (torch.empty((1, 3, SIDE, SIDE), device="meta"), "out is torch.float32 on meta"),
        (torch.empty((1, 3, SIDE, SIDE), dtype=torch.float16), "leave dtype away"),
    ],
)
def test_a_bad_target_is_refused(out, message):
    with pytest.raises(InvalidInputError, match=message):
        DevicePreprocessing(SMALL, SIDE, "cpu").clip(noise(1, 9, 9), out=out, dtype=torch.float32)


def test_other_types_are_refused():
    with pytest.raises(
        InvalidInputError, match=r"dtype is torch.bfloat16; pass torch.float32 or torch.float16"
    ):
        DevicePreprocessing(SMALL, SIDE, "cpu").clip(noise(1, 9, 9), dtype=torch.bfloat16)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 2), (0, 7), (6, None)])
def test_tiles_that_there_are_not_are_refused(start, stop):
    prepared = DevicePreprocessing(SMALL, SIDE, "cpu")
    with pytest.raises(InvalidInputError, match="there are 6, so 0 ≤ start < stop ≤ 6"):
        prepared.tiles(noise(1, 40, 60), TileLayout(FULL, 40, 60, SIDE), start, stop)
    if stop != 2:
        with pytest.raises(InvalidInputError, match="there are 4"):
            prepared.target_tiles(noise(1, 40, 60), TargetScales((1, 2, 3, 30), 1, 2, 15), start, stop)


@pytest.mark.parametrize("layout", [TileLayout(FULL, 60, 40, SIDE), TileLayout(FULL, 40, 60, SIDE + 1)])
def test_a_layout_of_other_frames_is_refused(layout):
    with pytest.raises(InvalidInputError, match="but the frames are 60×40 and the model's input is 24"):
        DevicePreprocessing(SMALL, SIDE, "cpu").tiles(noise(1, 40, 60), layout)


@pytest.mark.parametrize("device", ["cuda:99", "warp"])
def test_a_device_that_is_not_there_is_named(device):
    with pytest.raises(
        InvalidInputError, match=rf"device is '{device}', which torch cannot use here .*'cpu'"
    ):
        DevicePreprocessing(SMALL, SIDE, device)


def test_an_implementation_must_exist_and_fit_the_device(monkeypatch):
    with pytest.raises(
        InvalidInputError, match="implementation is 'numpy'; pass 'auto', 'torch' or 'triton'"
    ):
        DevicePreprocessing(SMALL, SIDE, "cpu", implementation="numpy")
    kernels = pytest.importorskip(
        "autogaze_backend.torch_engine.preprocessing_kernels", reason="needs triton"
    )
    monkeypatch.setattr(kernels, "INTERPRETED", False)
    with pytest.raises(
        InvalidInputError, match="the kernels need a CUDA device, so pass implementation='torch'"
    ):
        DevicePreprocessing(SMALL, SIDE, "cpu", implementation="triton")


def test_without_torch_the_extra_is_named():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from autogaze_backend.preprocessing import PreprocessingConfig\n"
        "from autogaze_backend.torch_engine.preprocessing import DevicePreprocessing\n"
        "DevicePreprocessing(PreprocessingConfig(), 224, 'cpu')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MissingExtraError" in done.stderr
    assert "pip install 'autogaze-triton[torch]'" in done.stderr
