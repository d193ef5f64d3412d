"""Preprocessing on the device that computes: frames travel as bytes and become model input there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
from autogaze_client._errors import InvalidInputError, MissingExtraError
from autogaze_client.modes import AutoGazeInferenceMode
from numpy.typing import NDArray

from autogaze_backend.adaptation import TargetScales
from autogaze_backend.preprocessing import (
    PreprocessingConfig,
    check_frames,
    normalisation_table,
    resize_exact,
    shortest_edge_size,
)
from autogaze_backend.tiling import TileLayout
from autogaze_backend.torch_engine.host_copies import copy_clips
from autogaze_backend.torch_engine.pillow_resize import resize_pass, resize_plan

Tensor = Any  # torch.Tensor, which is not there where types are checked.

_LOG = logging.getLogger("autogaze")

# Frame sizes whose tables stay on the device.
_SIZES = 64


class DevicePreprocessing:
    """From uint8 frames to model input on a torch device, bit for bit what the host's path gives.

    The frames are uploaded once as bytes; resize, normalisation and cutting into tiles happen on the device.
    A float16 result is the float32 one, rounded. All work is enqueued on the current stream and nothing waits
    for it. One caller at a time.

    A frame size that is new costs some 50 ms on the host, since the installed Pillow is asked how it resizes
    it, and small tables on the device, which are kept for the last 64 sizes.

    Args:
        config: the processor's settings.
        input_size: side of the model's square input.
        device: where to compute, such as "cuda:0" or a ``torch.device``.
        implementation: "triton" for fused kernels, "torch" for plain operations, "auto" for the kernels on a
            CUDA device that has triton.

    Raises:
        InvalidInputError: the device or the implementation does not exist here.
        MissingExtraError: torch or the asked triton is not installed.

    Example:
        >>> pre = DevicePreprocessing(bundle.preprocessing, 224, "cuda:0")  # doctest: +SKIP
        >>> frames = pre.upload(clip)  # doctest: +SKIP
        >>> video = pre.clip(frames)  # doctest: +SKIP
        >>> rows = pre.tiles(frames, layout, 0, 16, dtype=torch.float16)  # doctest: +SKIP
    """

    def __init__(
        self,
        config: PreprocessingConfig,
        input_size: int,
        device: Any,
        *,
        implementation: str = "auto",
    ) -> None:
        try:
            import torch

            from autogaze_backend.torch_engine import preprocessing_tables
        except ImportError as error:
            raise MissingExtraError.for_extra("preprocessing on a device", "torch", error) from error
        self._torch = torch
        self._tables = preprocessing_tables
        self.config = config
        self.input_size = input_size
        self.device = _checked_device(torch, device)
        self._ops = _operations(implementation, self.device)
        self._levels = torch.from_numpy(normalisation_table(config)).to(self.device)
        self._identity = preprocessing_tables.square_axis(input_size, input_size, self.device)
        self._passes = lru_cache(maxsize=_SIZES)(self._make_passes)
        self._axes = lru_cache(maxsize=_SIZES)(self._make_axes)

    @property
    def implementation(self) -> str:
        """What runs: "torch" or "triton"."""
        name: str = self._ops.NAME
        return name

    def upload(self, frames: NDArray[np.uint8] | Sequence[NDArray[np.uint8]]) -> Tensor:
        """Copies a clip to the device through pinned memory, without waiting for the copy.

        Args:
            frames: uint8 ``[T, H, W, 3 or 4]``, or several clips of one size, which then share the copy and
                what is computed, frame after frame; may be changed as soon as this returns.

        Returns:
            uint8 ``[T, H, W, 3 or 4]`` on the device, ready on the current stream; T counts all clips' frames.

        Raises:
            InvalidInputError: another type or shape, no clip, or clips of different sizes.
        """
        torch = self._torch
        clips = [frames] if isinstance(frames, np.ndarray) else list(frames)
        shapes = list(dict.fromkeys(check_frames(clip).shape[1:] for clip in clips))
        if len(shapes) != 1:
            raise InvalidInputError(
                f"clips with frames of {[list(shape) for shape in shapes]} are to be uploaded as one; pass at least "
                "one clip, and those of another height, width or channel count apart"
            )
        # The pinned block returns to torch's pool, which hands it out again once the copy is through.
        staging = torch.empty(
            (sum(map(len, clips)), *shapes[0]), dtype=torch.uint8, pin_memory=self.device.type == "cuda"
        )
        copy_clips(clips, staging.numpy())
        return staging.to(self.device, non_blocking=True)

    def clip(
        self, frames: NDArray[np.uint8] | Tensor, *, dtype: Any = None, out: Tensor | None = None
    ) -> Tensor:
        """The model input of the resize mode; equals ``preprocessing.preprocess``.

        Frames that have the model's size take one launch that depends on no cache, so a CUDA graph may hold it.

        Args:
            frames: uint8 ``[T, H, W, 3 or 4]``, an array or a tensor on this device (any strides).
            dtype: ``torch.float32`` (the default) or ``torch.float16``.
            out: where to write: ``[T, 3, side, side]``, contiguous; its type then counts.

        Returns:
            ``[T, 3, side, side]`` on the device.

        Raises:
            InvalidInputError: a wrong type, shape or device, or frames more than 64 times longer than wide.
            MissingExtraError: the frames must be resized and Pillow, whose bytes are the rule, is not installed.
        """
        source = self._on_device(frames)
        side = self.input_size
        size = shortest_edge_size(source.shape[1], source.shape[2], self.config.shortest_edge)
        out = self._out(out, dtype, (len(source), 3, side, side))
        if size == (side, side) and source.shape[1:3] != size and self._resize(source, size, out):
            return out
        resized = self._resized(source, size)
        rows, columns = (self._identity,) * 2 if size == (side, side) else self._axes(size)
        self._run(self._ops.cut, resized, rows, columns, self._levels, 0, out[None])
        return out

    def tiles(
        self,
        frames: NDArray[np.uint8] | Tensor,
        layout: TileLayout,
        start: int = 0,
        stop: int | None = None,
        *,
        dtype: Any = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Some tiles of a tiled mode; each equals ``TileLayout.tile``.

        Args:
            frames: uint8 ``[T, H, W, 3 or 4]``, an array or a tensor on this device (any strides).
            layout: of frames of this size, with tiles of the model's size.
            start: the first tile, row-major.
            stop: the one after the last; None for all.
            dtype: ``torch.float32`` (the default) or ``torch.float16``.
            out: where to write: ``[stop - start, T, 3, side, side]``, contiguous; its type then counts.

        Returns:
            ``[stop - start, T, 3, side, side]`` on the device.

        Raises:
            InvalidInputError: a wrong type, shape or device, a layout that does not fit, or tiles it has not.
        """
        source = self._on_device(frames)
        if tuple(source.shape[1:3]) != (layout.height, layout.width) or layout.size != self.input_size:
            raise InvalidInputError(
                f"the layout cuts frames of {layout.width}×{layout.height} into tiles of {layout.size}, but the frames "
                f"are {source.shape[2]}×{source.shape[1]} and the model's input is {self.input_size}; make the layout "
                "from these"
            )
        stop = _checked_range(start, stop, layout.count)
        out = self._out(out, dtype, (stop - start, len(source), 3, self.input_size, self.input_size))
        rows, columns = self._axes(layout)
        self._run(self._ops.cut, source, rows, columns, self._levels, start, out)
        return out

    def target_tiles(
        self,
        frames: NDArray[np.uint8] | Tensor,
        target: TargetScales,
        start: int = 0,
        stop: int | None = None,
        *,
        dtype: Any = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Some tiles of target scales, resized to the model's input.

        Equals ``resize_to_input`` of the tiles that ``TargetScales.cut`` makes of a clip.

        Args:
            frames: uint8 ``[T, H, W, 3 or 4]``, an array or a tensor on this device (any strides).
            target: the scales.
            start: the first tile, row-major.
            stop: the one after the last; None for all ``target.tiles``² of them.
            dtype: ``torch.float32`` (the default) or ``torch.float16``.
            out: where to write: ``[stop - start, T, 3, side, side]``, contiguous; its type then counts.

        Returns:
            ``[stop - start, T, 3, side, side]`` on the device.

        Raises:
            InvalidInputError: a wrong type, shape or device, or tiles that the target has not.
            MissingExtraError: as ``clip``.
        """
        source = self._on_device(frames)
        stop = _checked_range(start, stop, target.tiles**2)
        out = self._out(out, dtype, (stop - start, len(source), 3, self.input_size, self.input_size))
        resized = self._resized(source, (target.size, target.size))
        rows, columns = self._axes(target)
        self._run(self._ops.cut, resized, rows, columns, self._levels, start, out)
        return out

    def warm_up(self, dtypes: Sequence[Any] = ()) -> None:
        """Compiles every kernel, so that no request waits for that.

        Args:
            dtypes: of the results that will be asked for; empty for both.
        """
        torch, side = self._torch, self.input_size
        dtypes = dtypes or (torch.float32, torch.float16)
        frames = torch.zeros((1, side + 1, side + 1, 3), dtype=torch.uint8, device=self.device)
        one = self._identity
        cubic = self._tables.square_axis(side + 1, side, self.device)
        grid = TileLayout(AutoGazeInferenceMode.TILED_RESIZE_TO_GRID, side + 1, side + 1, side)
        axes = [(one, one), (one, cubic), (cubic, one), (cubic, cubic), self._axes(grid)]
        for dtype in dtypes:
            out = torch.empty((1, 1, 3, side, side), dtype=dtype, device=self.device)
            for rows, columns in axes:
                self._run(self._ops.cut, frames, rows, columns, self._levels, 0, out)
        for vertical in (False, True):
            table = self._tables.PassTable.of(resize_pass(side + 1, side), vertical, self.device)
            shape = (1, 3, side, side + 1) if vertical else (1, 3, side + 1, side)
            for dtype in (torch.uint8, *dtypes):
                out = torch.empty(shape, dtype=dtype, device=self.device)
                self._run(self._ops.resize_pass, frames, table, self._levels_for(out), out)

    def _on_device(self, frames: NDArray[np.uint8] | Tensor) -> Tensor:
        torch = self._torch
        if not isinstance(frames, torch.Tensor):
            return self.upload(frames)
        if frames.device != self.device:
            raise InvalidInputError(
                f"frames lie on {frames.device}, and the preprocessing runs on {self.device}; pass an array, or move "
                "them there"
            )
        if frames.dtype != torch.uint8:
            raise InvalidInputError(f"frames are {frames.dtype}; pass torch.uint8 values from 0 to 255")
        # The rules of arrays, told of this tensor's shape.
        check_frames(np.broadcast_to(np.uint8(0), tuple(frames.shape)))
        return frames

    def _run(self, operation: Callable[..., None], *operands: Any) -> None:
        """Triton launches on the current device, whichever holds the tensors."""
        if self.device.type != "cuda":
            operation(*operands)
            return
        with self._torch.cuda.device(self.device):
            operation(*operands)

    def _levels_for(self, out: Tensor) -> Tensor | None:
        return None if out.dtype == self._torch.uint8 else self._levels

    def _out(self, out: Tensor | None, dtype: Any, shape: tuple[int, ...]) -> Tensor:
        torch = self._torch
        kinds = (torch.float32, torch.float16)
        if out is None:
            if dtype is not None and dtype not in kinds:
                raise InvalidInputError(f"dtype is {dtype}; pass torch.float32 or torch.float16")
            return torch.empty(shape, dtype=dtype or torch.float32, device=self.device)
        if tuple(out.shape) != shape or out.dtype not in kinds or not out.is_contiguous():
            raise InvalidInputError(
                f"out is {out.dtype} {list(out.shape)} with strides {list(out.stride())}; pass contiguous float32 or "
                f"float16 {list(shape)}"
            )
        if dtype not in (None, out.dtype) or out.device != self.device:
            raise InvalidInputError(
                f"out is {out.dtype} on {out.device}; {dtype or out.dtype} on {self.device} is asked for: leave dtype "
                "away, and pass a tensor of this device"
            )
        return out

    def _resized(self, source: Tensor, size: tuple[int, int]) -> Tensor:
        """Bytes ``[T, *size, 3 or 4]`` as Pillow resizes them."""
        if tuple(source.shape[1:3]) == size:
            return source
        out = self._torch.empty((len(source), 3, *size), dtype=self._torch.uint8, device=self.device)
        if self._resize(source, size, out):
            return out.permute(0, 2, 3, 1)
        _LOG.warning(
            "this Pillow resizes %s to %s by a rule of its own: the host does it", source.shape[1:3], size
        )
        return self.upload(resize_exact(source.cpu().numpy(), size))

    def _resize(self, source: Tensor, size: tuple[int, int], out: Tensor) -> bool:
        """Resizes to ``[T, 3, *size]``, bytes or normalised floats; False where only Pillow can."""
        torch = self._torch
        passes = self._passes(tuple(source.shape[1:3]), size)
        if passes is None:
            return False
        *before, last = passes
        for table in before:
            height, width = source.shape[1:3]
            shape = (len(table.first), width) if table.vertical else (height, len(table.first))
            between = torch.empty((len(source), 3, *shape), dtype=torch.uint8, device=self.device)
            self._run(self._ops.resize_pass, source, table, None, between)
            source = between.permute(0, 2, 3, 1)
        self._run(self._ops.resize_pass, source, last, self._levels_for(out), out)
        return True

    def _make_passes(self, source: tuple[int, int], size: tuple[int, int]) -> Any:
        plan = resize_plan(source, size)
        if plan is None:
            return None
        passes = [
            self._tables.PassTable.of(step, vertical, self.device)
            for step, vertical in ((plan.horizontal, False), (plan.vertical, True))
            if step is not None
        ]
        return passes[::-1] if plan.vertical_first else passes

    def _make_axes(self, cut: tuple[int, int] | TileLayout | TargetScales) -> Any:
        """Rows and columns: of the square input of a size, of a tiled mode, or of target scales."""
        if isinstance(cut, TileLayout):
            return self._tables.layout_axes(cut, self.device)
        if isinstance(cut, TargetScales):
            axis = self._tables.target_axis(cut, self.input_size, self.device)
            return axis, axis
        return tuple(self._tables.square_axis(size, self.input_size, self.device) for size in cut)


def _checked_device(torch: Any, name: Any) -> Any:
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        # As a tensor names it, so that the two compare.
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        raise InvalidInputError(
            f"device is {str(name)!r}, which torch cannot use here ({str(error).splitlines()[0]}); pass one of "
            f"{['cpu', *cuda]}"
        ) from error


def _operations(implementation: str, device: Any) -> ModuleType:
    if implementation not in ("auto", "torch", "triton"):
        raise InvalidInputError(f"implementation is {implementation!r}; pass 'auto', 'torch' or 'triton'")
    if implementation == "triton" or (implementation == "auto" and device.type == "cuda"):
        try:
            from autogaze_backend.torch_engine import preprocessing_kernels

            if device.type != "cuda" and not preprocessing_kernels.INTERPRETED:
                raise InvalidInputError(
                    f"implementation is 'triton' and device is '{device}'; the kernels need a CUDA device, so pass "
                    "implementation='torch' (or set TRITON_INTERPRET=1 before the start, to test them slowly)"
                )
            return preprocessing_kernels
        except ImportError as error:
            if implementation == "triton":
                raise MissingExtraError.for_extra("preprocessing by kernels", "torch", error) from error
    from autogaze_backend.torch_engine import preprocessing_torch

    return preprocessing_torch


def _checked_range(start: int, stop: int | None, count: int) -> int:
    end = count if stop is None else stop
    if not 0 <= start < end <= count:
        raise InvalidInputError(
            f"tiles {start} to {end} are asked for; there are {count}, so 0 ≤ start < stop ≤ {count}"
        )
    return end
