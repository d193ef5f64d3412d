"""The torch engine's kernels against plain torch, in Triton's interpreter where there is no GPU; and compiled.

The architecture is the smallest that fills the kernels' tiles: the interpreter is some thousand times slower.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from autogaze_backend.resident import frame_plans
from autogaze_backend.spec import ModelSpec
from autogaze_client import InvalidInputError
from autogaze_export.binding import weight_shapes

from backend.torch_kernel_names import DECODER, ENCODER

torch = pytest.importorskip("torch", reason="the torch engine needs the extra 'torch'")
triton = pytest.importorskip("triton", reason="needs triton; pip install --no-deps triton==3.6.0")

from autogaze_backend.torch_engine.encoder import TorchSteps, encode  # noqa: E402
from autogaze_backend.torch_engine.encoder_launching import TritonSteps  # noqa: E402
from autogaze_backend.torch_engine.halves import split_halves  # noqa: E402
from autogaze_backend.torch_engine.launching import TritonOps  # noqa: E402
from autogaze_backend.torch_engine.reference import ReferenceOps  # noqa: E402
from autogaze_backend.torch_engine.state import Sizes, SlotState, Work, pack_inputs  # noqa: E402
from autogaze_backend.torch_engine.tilings import TILINGS, check_architecture  # noqa: E402
from autogaze_backend.torch_engine.weights import decoder_weights, encoder_weights  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    # Triton's interpreter and numpy 1.26; not ours.
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),
]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SPEC = ModelSpec(
    scales=(32, 64),
    tokens_per_frame=20,
    group_size=3,
    input_size=64,
    patch_size=16,
    encoder_depth=1,
    temporal_kernel=3,
    spatial_kernel=3,
    hidden_size=64,
    intermediate_size=64,
    num_layers=2,
    num_heads=2,
    head_dim=32,
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
    rope_scaling=None,
    default_gazing_ratio=0.75,
    default_task_loss_requirement=0.7,
    max_num_frames=16,
)
SIZES = Sizes(slots=5, rows=4, pages=16, max_pages=3, window=2)
SLOTS = [3, 0, 2]
# Counters and choices of every slot, of which no bit may differ.
EXACT = ("first", "length", "position", "anchor", "group", "chosen", "budget", "running", "frame", "cursor")
# The tilings of more tokens, for few: the interpreter could not pay for them.
LARGE = {(exact, size): TILINGS[exact, "large"] for exact, size in TILINGS}
MEDIUM = {(exact, size): TILINGS[exact, "medium"] for exact, size in TILINGS}


@pytest.fixture(scope="module", autouse=True)
def runnable():
    from autogaze_backend.torch_engine.preprocessing_kernels import INTERPRETED

    if DEVICE.type == "cpu" and not INTERPRETED:
        pytest.skip("the interpreter is off (TRITON_INTERPRET), and there is no GPU")


def random_weights(seed: int = 1, spec: ModelSpec = SPEC) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    weights = {}
    for name, shape in weight_shapes(spec).items():
        inner = shape[0] if len(shape) == 2 else max(1, int(np.prod(shape[1:])))
        scale = 1.0 if name.endswith(("embed", "position")) else inner**-0.5
        weights[name] = (random.standard_normal(shape) * scale).astype(np.float32)
        if "norm" in name and len(shape) == 1:
            weights[name] = (1 + 0.1 * random.standard_normal(shape)).astype(np.float32)
    return weights


class Side:
    """One of the two implementations, with buffers of its own; both start from the same slots."""

    def __init__(self, dtype, *, kernels: bool, tilings=None) -> None:
        weights = decoder_weights(SPEC, random_weights(), DEVICE, dtype, halves=kernels)
        self.state = SlotState(SPEC, SIZES, DEVICE, dtype, halves=kernels)
        self.work = Work(SPEC, SIZES, weights.heads.shape[-1], DEVICE, dtype)
        random = np.random.default_rng(2)
        state = self.state
        # Caches that begin and end in the middle of a page, far into a stream; one slot starts a stream.
        for slot, first, stored, position in ((3, 70, 131, 1_000_003), (0, 0, 0, 0), (2, 25, 60, 77)):
            state.first[slot], state.length[slot], state.position[slot] = first, stored, position
        state.group[3] = torch.tensor([5, SPEC.tokens_per_frame, 7])
        state.group[2] = torch.tensor([SPEC.tokens_per_frame, 19, SPEC.tokens_per_frame])
        state.table.copy_(torch.from_numpy(random.permutation(18).reshape(6, 3) % SIZES.pages))
        state.table[torch.tensor(SLOTS)] = (
            torch.from_numpy(random.permutation(9).reshape(3, 3)).int().to(DEVICE)
        )
        state.vision.copy_(torch.from_numpy(random.standard_normal(state.vision.shape)))
        layers, both, _, *rest = state.cache.shape
        cache = random.standard_normal((layers, both, *rest)).astype(np.float32)
        if dtype == torch.float16:
            cache = cache.astype(np.float16)
        parts = np.moveaxis(split_halves(cache.astype(np.float64)), 0, 2) if kernels else cache[:, :, None]
        state.cache.copy_(torch.from_numpy(np.ascontiguousarray(parts[:, :, : state.cache.shape[2]])))
        if kernels:
            self.ops = TritonOps(SPEC, weights, state, self.work, tilings)
        else:
            self.ops = ReferenceOps(SPEC, weights, state, self.work)

    def prefill(self, places, budgets, requirements, dropped) -> None:
        for slot, place, *plan in zip(SLOTS, places, budgets, requirements, dropped, strict=True):
            self.state.frame[slot] = place - 1
            self.state.plan[slot, place] = torch.from_numpy(
                frame_plans([[plan[0]]], [plan[1]], plan[2])[0, 0]
            )
        self._send()
        self.ops.prefill(SIZES.rows)

    def step(self) -> None:
        self._send()
        self.ops.step(SIZES.rows)

    def _send(self) -> None:
        # Beyond the call's rows lies whatever was there; no kernel may look for a slot of that number.
        host = np.full(self.work.inputs.numel(), 1 << 30, np.int32)
        pack_inputs(host, np.array(SLOTS))
        self.work.inputs.copy_(torch.from_numpy(host))

    def flags(self) -> list[int]:
        return self.work.flags[: len(SLOTS)].tolist()


def compare(found: Side, expected: Side, ran: list[bool], tolerance: float) -> None:
    size = SPEC.group_size
    for name in EXACT:
        ours, theirs = getattr(found.state, name).cpu(), getattr(expected.state, name).cpu()
        assert torch.equal(ours, theirs), name
    assert torch.equal(found.state.frame_counts.cpu(), expected.state.frame_counts.cpu())
    assert torch.equal(found.state.record[:, 0].cpu(), expected.state.record[:, 0].cpu())
    ours, theirs = (side.state.record[:, 1:].view(torch.float32).cpu().numpy() for side in (found, expected))
    np.testing.assert_allclose(ours, theirs, atol=tolerance)
    assert found.flags() == expected.flags()
    rows = torch.tensor(np.flatnonzero(ran))
    for part in (slice(0, size), slice(3 * size, None)):
        assert torch.equal(found.work.call.cpu()[rows, part], expected.work.call.cpu()[rows, part])
    width = size * (SPEC.vocab_size + 1)
    ours, theirs = (side.work.logits.cpu()[rows, :width].numpy() for side in (found, expected))
    np.testing.assert_allclose(ours, theirs, atol=tolerance)


@pytest.mark.parametrize(
    ("dtype", "tilings", "steps", "tolerance"),
    [
        (torch.float32, None, [3, 1], 1e-3),
        (torch.float32, MEDIUM, [1], 1e-3),
        (torch.float32, LARGE, [1], 1e-3),
        (torch.float16, None, [1], 3e-2),
    ],
    ids=["exact", "exact-medium", "exact-large", "fast"],
)
def test_frames_are_those_of_plain_torch(dtype, tilings, steps, tolerance):
    """Two frames of three rows: one stops early, one has a small budget, some leave positions behind."""
    found, expected = Side(dtype, kernels=True, tilings=tilings), Side(dtype, kernels=False)
    nan = float("nan")
    frames = [
        ([0, 1, 0], [12, 4, 12], [nan, nan, -0.5], [0, 0, 0]),
        ([1, 0, 1], [6, 5, 6], [nan, -0.5, nan], [33, 0, 40]),
    ]
    rested = 0
    for count, frame in zip(steps, frames, strict=False):
        for side in (found, expected):
            side.prefill(*frame)
        compare(found, expected, [True] * 3, tolerance)
        for _ in range(count):
            ran = [flag != 0 for flag in expected.flags()]
            rested += ran.count(False)
            for side in (found, expected):
                side.step()
            compare(found, expected, ran, tolerance)
    if len(steps) > 1:
        # Else nothing was seen of a row that rests beside rows that run.
        assert 0 < rested < 12
        assert expected.state.first.tolist()[:4] == [0, 0, 65, 103]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            {"hidden_size": 96, "num_heads": 3},
            "hidden_size is 96, .* multiples of 64; run this bundle with another",
        ),
        ({"intermediate_size": 160}, "intermediate_size is 160, .* multiples of 64"),
        ({"hidden_size": 192, "num_heads": 3, "head_dim": 64}, "num_heads is 3, .* multiples of 2"),
        ({"hidden_size": 192, "num_heads": 4, "head_dim": 48}, "head_dim is 48, .* powers of two from 16 on"),
        ({"hidden_size": 64, "num_heads": 8, "head_dim": 8}, "head_dim is 8, "),
    ],
)
def test_an_architecture_that_programs_do_not_cover_is_refused(sizes, message):
    """What lies beyond whole programs would not be computed, and nobody told."""
    check_architecture(SPEC)
    with pytest.raises(InvalidInputError, match=message):
        check_architecture(replace(SPEC, **sizes))


@pytest.mark.parametrize(
    ("dtype", "rows", "frames", "tolerance"),
    [
        (torch.float32, 2, 1, 2e-5),
        (torch.float32, 1, 2, 2e-5),
        (torch.float32, 1, 5, 2e-5),
        (torch.float16, 2, 2, 4e-3),
    ],
)
def test_the_encoder_is_plain_torchs(dtype, rows, frames, tolerance):
    """Windows shorter and longer than the taps reach, on from a state and from a stream's start."""
    ours = TritonSteps(SPEC, encoder_weights(SPEC, random_weights(), DEVICE, dtype, halves=True))
    plain = TorchSteps(SPEC, encoder_weights(SPEC, random_weights(), DEVICE, dtype, halves=False))
    random = np.random.default_rng(frames)
    # Channels last, as frames come.
    video = torch.from_numpy(random.standard_normal((rows, frames, 64, 64, 3)).astype(np.float32)).to(DEVICE)
    video = video.permute(0, 1, 4, 2, 3)
    shape = (SIZES.slots, 1, SPEC.temporal_kernel - 1, SPEC.vision_tokens, SPEC.hidden_size)
    states = torch.from_numpy(random.standard_normal(shape)).to(DEVICE, dtype)
    places = torch.tensor([4, 1][:rows], device=DEVICE)
    for fresh in (False, True):
        starts = torch.tensor([fresh, not fresh][:rows], device=DEVICE)
        results = []
        for steps in (ours, plain):
            vision = torch.full((SIZES.slots, 6, SPEC.vision_tokens, SPEC.hidden_size), 7.0).to(DEVICE, dtype)
            after = encode(SPEC, steps, video, states, places, starts, vision)
            results.append((vision.cpu(), after.cpu()))
        (found, state), (expected, expected_state) = results
        np.testing.assert_allclose(found, expected, atol=tolerance)
        np.testing.assert_allclose(state, expected_state, atol=tolerance)
        # Nothing but the rows' frames was written.
        written = (found != 7.0).any(dim=3).any(dim=2)
        assert written.nonzero().tolist() == [
            [row, frame] for row in sorted(places.tolist()) for frame in range(frames)
        ]


def test_the_patch_embedding_of_a_width_that_is_no_power_of_two():
    """As the release's, whose programs compute columns that are not there."""
    spec = replace(SPEC, hidden_size=96, num_heads=3)
    weights = random_weights(spec=spec)
    video = torch.from_numpy(np.random.default_rng(3).standard_normal((1, 3, 3, 64, 64)).astype(np.float32))
    ours, plain = (
        steps(spec, encoder_weights(spec, weights, DEVICE, torch.float32, halves=True)).patches(
            video.to(DEVICE)
        )
        for steps in (TritonSteps, TorchSteps)
    )
    assert ours.shape == (1, 3, 16, 96)
    np.testing.assert_allclose(ours.cpu(), plain.cpu(), atol=2e-5)


def test_a_pixel_counts_with_all_its_bits_in_half_precision():
    """Results that are not the float32 one, rounded, with kernels and where pixels are rounded before the product."""
    weights = random_weights()
    # Weights that are exact in float16, as of a checkpoint in that type: what is left is the pixels' error.
    weights["encoder.patch.weight"] = weights["encoder.patch.weight"].astype(np.float16).astype(np.float32)
    placed = encoder_weights(SPEC, weights, DEVICE, torch.float16, halves=True)
    levels = np.random.default_rng(5).integers(0, 256, (1, 1, 3, 64, 64))
    video = torch.from_numpy(((levels / 127.5 - 1 - 0.45) / 0.224).astype(np.float32)).to(DEVICE)
    exact = TorchSteps(SPEC, encoder_weights(SPEC, weights, DEVICE, torch.float32, halves=False)).patches(
        video
    )
    found, plain = (
        float((steps.patches(video) != exact.half()).float().mean())
        for steps in (TritonSteps(SPEC, placed), TorchSteps(SPEC, placed))
    )
    # What is left are sums that lie between two halves.
    assert found < 0.01
    assert plain > 0.1


COMPILE = """
import subprocess, sys
from pathlib import Path
import numpy as np
import torch
import triton
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction
from autogaze_backend.spec import ModelSpec
from autogaze_backend.torch_engine.encoder_launching import TritonSteps
from autogaze_backend.torch_engine.launching import TritonOps
from autogaze_backend.torch_engine.state import Sizes, SlotState, Work
from autogaze_backend.torch_engine.tilings import TILINGS
from autogaze_backend.torch_engine.weights import decoder_weights, encoder_weights
from autogaze_export.binding import weight_shapes
from goldens.checkpoint import config

TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.int32: "*i32", torch.int64: "*i64",
         torch.int8: "*i8", torch.float64: "*fp64"}
spec = ModelSpec.from_config(config())
weights = {name: np.zeros(shape, np.float32) for name, shape in weight_shapes(spec).items()}
calls = []
JITFunction.run = lambda self, *args, grid, warmup, **options: calls.append((self, args, options))
cpu = torch.device("cpu")


def record(dtype, chained, few):
    calls.clear()
    decoder = decoder_weights(spec, weights, cpu, dtype, halves=True)
    encoder = encoder_weights(spec, weights, cpu, dtype, halves=True)
    sizes = Sizes(4, 4, 16, 8, 16)
    state = SlotState(spec, sizes, cpu, dtype, halves=True)
    work = Work(spec, sizes, decoder.heads.shape[-1], cpu, dtype)
    exact = dtype == torch.float32
    large = {(exact, size): TILINGS[exact, "large"] for size in ("small", "medium")}
    ops = TritonOps(spec, decoder, state, work, None if few else large)
    ops._chained = chained
    rows = 1 if few else 4
    ops.prefill(rows)
    if few:
        ops.step(rows)
    index = torch.zeros(rows, dtype=torch.int64)
    steps = TritonSteps(spec, encoder)
    # More frames than few, to compile; nothing runs.
    frames = torch.zeros((rows, 1 if few else 16, 3, spec.input_size, spec.input_size))
    steps.patches(frames)
    batch = torch.zeros((*frames.shape[:2], spec.vision_tokens, spec.hidden_size), dtype=dtype)
    if exact:
        steps.convolution(0, batch, state.encoder, index, index != 0)
    steps.project(batch, state.vision, index)
    return list(calls)


def compiled(kernel, args, options, capability):
    options = dict(options)
    build = {name: options.pop(name) for name in ("num_warps", "num_stages", "launch_pdl") if name in options}
    signature = dict.fromkeys(options, "constexpr")
    attributes = {}
    for place, (parameter, value) in enumerate(zip(kernel.params, args)):
        signature[parameter.name] = TYPES[value.dtype] if isinstance(value, torch.Tensor) else "i32"
        if isinstance(value, torch.Tensor):
            attributes[(place,)] = [["tt.divisibility", 16]]
    key = (kernel.__name__, *sorted(signature.items()), *sorted(options.items()), *sorted(build.items()))
    if key in seen:
        return
    seen.add(key)
    signature = {parameter.name: signature[parameter.name] for parameter in kernel.params}
    source = ASTSource(fn=kernel, signature=signature, constexprs=options, attrs=attributes)
    done = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=build)
    file = Path(sys.argv[1]) / "kernel.cubin"
    file.write_bytes(done.asm["cubin"])
    tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
    usage = subprocess.run([tool, "--dump-resource-usage", file], capture_output=True, text=True, check=True)
    usage = usage.stdout.split("Function")[-1].replace("\\n", " ")
    print("kernel", kernel.__name__, capability, done.metadata.shared, usage)


for dtype, capability, few in VARIANTS:
    seen = set()
    for kernel, args, options in record(dtype, capability >= 90, few):
        compiled(kernel, args, options, capability)
"""

# Type, compute capability, and whether the tokens are few.
VARIANTS = {
    "H100": "[(torch.float32, 90, True)]",
    "A100": "[(torch.float32, 80, True)]",
    "H100-large": "[(torch.float32, 90, False)]",
    "A100-large-fast": "[(torch.float16, 80, False)]",
    "H100-large-fast": "[(torch.float16, 90, False)]",
}
KERNELS = DECODER | ENCODER


@pytest.mark.parametrize(
    "variant", [name if name == "H100" else pytest.param(name, marks=pytest.mark.long) for name in VARIANTS]
)
def test_the_kernels_compile_for_gpus_and_fit_their_registers(variant, tmp_path):
    """What the interpreter cannot show: Triton's compiler takes the kernels of the release's architecture."""
    script = tmp_path / "compile_kernels.py"
    script.write_text(COMPILE.replace("VARIANTS", VARIANTS[variant]))
    tests = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(tests)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, script, tmp_path], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("kernel ")]
    wanted = KERNELS - ({"open_step_kernel"} if "large" in variant else set())
    if "fast" in variant:
        # In float16 the library's convolution is faster.
        wanted = wanted - {"convolution_kernel"}
    assert {line.split()[1] for line in lines} == wanted
    for line in lines:
        # Registers that do not fit are spilled to the stack; a float64 sine has a table of six words there.
        stack, local = (int(re.search(rf"{name}:(\d+)", line)[1]) for name in ("STACK", "LOCAL"))
        assert (stack, local) == (48 if "open_" in line.split()[1] else 0, 0), line
        # What one multiprocessor of an A100 has for a program; an H100 has more.
        assert int(line.split()[3]) <= 163 * 1024, line
