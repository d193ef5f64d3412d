"""Shapes of the kernels' programs, by how much a call has to do. Measured on an H100 and an H200."""

from __future__ import annotations

from dataclasses import dataclass, replace

from autogaze_client._errors import InvalidInputError

from autogaze_backend.spec import ModelSpec


@dataclass(frozen=True)
class LinearTiling:
    """Shapes of the programs of a linear layer.

    Attributes:
        columns: of the output, of a program; of the query, key and value product its heads.
        warps: of a program.
    """

    columns: int
    warps: int


@dataclass(frozen=True)
class AttentionTiling:
    """Shapes of the programs of attention.

    Attributes:
        queries: of a program.
        pages: of keys that a program with a part of them takes at once.
        warps: of a program.
        stages: of its software pipeline.
        splits: the most parts of the keys.
        programs: that a call should have, where that can be reached by splitting the keys.
    """

    queries: int
    pages: int
    warps: int
    stages: int
    splits: int
    programs: int


@dataclass(frozen=True)
class Tiling:
    """Shapes of the programs of a call.

    Attributes:
        tokens: tokens of a program of the linear layers.
        shared: depth of one step of a product.
        stages: of the linear layers' software pipelines.
        qkv: query, key and value product.
        gate_up: gate and up product.
        plain: the other two.
        frame: attention of the tokens of a frame.
        group: that of a group's.
        last: that of the read-out token alone, in the last layer.
    """

    tokens: int
    shared: int
    stages: int
    qkv: LinearTiling
    gate_up: LinearTiling
    plain: LinearTiling
    frame: AttentionTiling
    group: AttentionTiling
    last: AttentionTiling


# Fewer tokens than this: a group of a few rows. The multiprocessors are not even filled.
SMALL = 128

# Fewer tokens than this: a frame of a few rows. Small programs, so that all multiprocessors have work.
MEDIUM = 1024

_ONE_WARP = AttentionTiling(queries=16, pages=1, warps=1, stages=2, splits=8, programs=640)
_LAST = AttentionTiling(queries=16, pages=1, warps=1, stages=2, splits=16, programs=640)
_EXACT_GROUP = AttentionTiling(queries=16, pages=2, warps=4, stages=2, splits=8, programs=640)


def _large(programs: int, stages: int) -> Tiling:
    few_queries = AttentionTiling(16, pages=1, warps=4, stages=stages, splits=16, programs=programs)
    return Tiling(
        tokens=64,
        shared=64,
        stages=stages,
        qkv=LinearTiling(2, 4),
        gate_up=LinearTiling(64, 4),
        plain=LinearTiling(64, 4),
        frame=AttentionTiling(64, pages=1, warps=4, stages=stages, splits=16, programs=programs),
        group=few_queries,
        last=few_queries,
    )


_EXACT_SMALL = Tiling(
    tokens=16,
    shared=64,
    stages=3,
    qkv=LinearTiling(1, 2),
    gate_up=LinearTiling(32, 2),
    plain=LinearTiling(32, 2),
    frame=_ONE_WARP,
    group=_EXACT_GROUP,
    last=_LAST,
)
_FAST_SMALL = replace(_EXACT_SMALL, stages=5, plain=LinearTiling(32, 4), group=_ONE_WARP)

# By whether the arithmetic is float32, which has more to do in each program, and by size.
TILINGS: dict[tuple[bool, str], Tiling] = {
    (True, "small"): _EXACT_SMALL,
    (True, "medium"): replace(_EXACT_SMALL, qkv=LinearTiling(2, 4), gate_up=LinearTiling(64, 4)),
    (True, "large"): _large(programs=640, stages=2),
    (False, "small"): _FAST_SMALL,
    (False, "medium"): replace(_FAST_SMALL, qkv=LinearTiling(2, 2), gate_up=LinearTiling(64, 4)),
    (False, "large"): _large(programs=512, stages=3),
}


def size_of(tokens: int) -> str:
    """The name of a size: "small", "medium" or "large"."""
    return "small" if tokens < SMALL else "medium" if tokens < MEDIUM else "large"


def check_architecture(spec: ModelSpec) -> None:
    """Checks that whole programs cover the architecture: what lies beyond them would not be computed.

    Raises:
        InvalidInputError: a size that is no multiple of the programs', or a head that is no power of two.
    """
    columns = max(
        max(tiling.gate_up.columns, tiling.plain.columns, tiling.shared) for tiling in TILINGS.values()
    )
    heads = max(tiling.qkv.columns for tiling in TILINGS.values())
    for name, size, unit in (
        ("hidden_size", spec.hidden_size, columns),
        ("intermediate_size", spec.intermediate_size, columns),
        ("num_heads", spec.num_heads, heads),
    ):
        if size % unit:
            raise InvalidInputError(
                f"{name} is {size}, and the torch engine's kernels on a GPU take multiples of {unit}; run this bundle "
                "with another engine, or on the CPU"
            )
    if spec.head_dim < 16 or spec.head_dim & (spec.head_dim - 1):
        raise InvalidInputError(
            f"head_dim is {spec.head_dim}, and the torch engine's kernels on a GPU take powers of two from 16 on; run "
            "this bundle with another engine, or on the CPU"
        )
