"""Traces of many clips in one safetensors file (spec: readout §8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from autogaze_client._errors import InvalidInputError, NotFoundError
from autogaze_client.fixations import FrameFixationTrace

__all__ = ["AutoGazeTraceStore"]

_CELL_KEYS = ("scales", "confidences")
_EXACT_KEYS = ("widths", "heights", "grids")
_PADDING = {
    "fixations": 0.5,
    "scales": 0.25,
    "confidences": 0.0,
    "widths": 0.25,
    "heights": 0.25,
    "grids": 0.0,
}


class AutoGazeTraceStore:
    """Traces of clips of one length.

    Reads the reference's files: ``fixations`` [clips, frames, k, 2] (x, y), ``scales`` and ``confidences``
    [clips, frames, k], ``stop_probabilities`` [clips, frames], optionally ``visibility_maps`` [clips, frames,
    h, w]; F32 or F16. Those lose width, height and grid, so their points are squares of unknown grid. Files
    that this class writes add ``widths``, ``heights``, ``grids`` [clips, frames, k] and ``point_counts``
    [clips, frames], which the reference ignores, and read back exactly (to float32).

    Example:
        >>> cells = np.array([[0, 0.25, 0.25, 0.5, 0.5, 1.0, 2]], np.float32)
        >>> trace = FrameFixationTrace.from_array(cells, frames=1, stop_probabilities=[0])
        >>> content = AutoGazeTraceStore.from_traces([trace]).to_safetensors()
        >>> AutoGazeTraceStore.from_safetensors(content).trace(0) == trace
        True
    """

    def __init__(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Checks and takes the tensors of a file.

        Raises:
            InvalidInputError: a tensor is missing, of another type or shape, or holds a NaN.
        """
        fixations = _tensor(tensors, "fixations")
        if fixations.ndim != 4 or fixations.shape[3] != 2:
            raise InvalidInputError(
                f"fixations has shape {list(fixations.shape)}; it must be [clips, frames, k, 2]: x, y"
            )
        cells, frames = fixations.shape[:3], fixations.shape[:2]
        self._tensors = {"fixations": fixations}
        for name in (*_CELL_KEYS, *(name for name in _EXACT_KEYS if name in tensors)):
            self._tensors[name] = _tensor(tensors, name, cells)
        for name in ("stop_probabilities", *(name for name in ("point_counts",) if name in tensors)):
            self._tensors[name] = _tensor(tensors, name, frames)
        if "visibility_maps" in tensors:
            maps = _tensor(tensors, "visibility_maps")
            if maps.ndim != 4 or maps.shape[:2] != frames:
                raise InvalidInputError(
                    f"visibility_maps has shape {list(maps.shape)}; it must be {[*frames, 'h', 'w']}"
                )
            self._tensors["visibility_maps"] = maps
        counts = self._tensors.get("point_counts")
        if counts is not None and ((counts < 0) | (counts > cells[2]) | (counts != np.floor(counts))).any():
            raise InvalidInputError(f"point_counts holds values that are no count in 0..{cells[2]}")

    @classmethod
    def from_file(cls, path: str | Path) -> AutoGazeTraceStore:
        """Reads a file.

        Raises:
            NotFoundError: there is none.
            InvalidInputError: it is no such file.
        """
        source = Path(path)
        if not source.is_file():
            raise NotFoundError(
                f"there is no trace store at {source}; write one with AutoGazeTraceStore.save"
            )
        return cls.from_safetensors(source.read_bytes())

    @classmethod
    def from_safetensors(cls, content: bytes) -> AutoGazeTraceStore:
        """Reads the content of a file.

        Raises:
            InvalidInputError: it is no safetensors, or its tensors do not fit.
        """
        try:
            return cls(load(content))
        except (SafetensorError, KeyError, TypeError, AttributeError) as error:
            raise InvalidInputError(
                f"not a trace store in safetensors of F32 or F16: {type(error).__name__}: {error}"
            ) from error

    @classmethod
    def from_traces(
        cls, traces: Sequence[FrameFixationTrace], *, visibility_maps: NDArray[Any] | None = None
    ) -> AutoGazeTraceStore:
        """A store of clips of one length; frames with fewer points than others are padded in the file.

        Args:
            traces: the clips.
            visibility_maps: float ``[clips, frames, h, w]``; None = none.

        Raises:
            InvalidInputError: no clips, clips of different lengths, or values out of range.
        """
        lengths = sorted({len(trace) for trace in traces})
        if len(lengths) != 1:
            raise InvalidInputError(f"traces have the lengths {lengths} in frames; pass clips of one length")
        counts = np.array([[len(frame) for frame in trace.frames] for trace in traces], np.int64)
        counts = counts.reshape(len(traces), lengths[0])
        k = int(counts.max(initial=0))
        rows = np.concatenate([trace.to_array() for trace in traces])
        real = np.arange(k) < counts[:, :, None]
        columns = {
            "fixations": rows[:, 1:3],
            "scales": rows[:, 3:5].max(axis=1, initial=0.0),
            "confidences": rows[:, 5],
            "widths": rows[:, 3],
            "heights": rows[:, 4],
            "grids": rows[:, 6],
        }
        tensors: dict[str, NDArray[Any]] = {}
        for name, values in columns.items():
            tensors[name] = np.full((*real.shape, *values.shape[1:]), _PADDING[name], np.float32)
            tensors[name][real] = values
        stops = [[frame.stop_probability for frame in trace.frames] for trace in traces]
        tensors["stop_probabilities"] = np.array(stops, np.float32).reshape(counts.shape)
        tensors["point_counts"] = counts.astype(np.float32)
        if visibility_maps is not None:
            tensors["visibility_maps"] = np.asarray(visibility_maps, np.float32)
        return cls(tensors)

    def to_safetensors(self) -> bytes:
        """The content of a file, in F32."""
        content: bytes = save({name: np.ascontiguousarray(values) for name, values in self._tensors.items()})
        return content

    def save(self, path: str | Path) -> Path:
        """Writes a file and returns its path."""
        target = Path(path)
        target.write_bytes(self.to_safetensors())
        return target

    def __len__(self) -> int:
        return int(self._tensors["fixations"].shape[0])

    @property
    def is_empty(self) -> bool:
        """Whether there are no clips."""
        return len(self) == 0

    @property
    def clip_len(self) -> int:
        """Frames of every clip."""
        return int(self._tensors["fixations"].shape[1])

    @property
    def k(self) -> int:
        """Points of every frame in the file, padding included."""
        return int(self._tensors["fixations"].shape[2])

    @property
    def visibility_shape(self) -> tuple[int, int] | None:
        """Height and width of the visibility maps; None where there are none."""
        maps = self._tensors.get("visibility_maps")
        return None if maps is None else (int(maps.shape[2]), int(maps.shape[3]))

    def visibility_map(self, clip: int, frame: int) -> NDArray[np.float32] | None:
        """A frame's map, flat and row-major, float32 ``[h · w]``; None where there is none."""
        maps = self._tensors.get("visibility_maps")
        if maps is None or not (0 <= clip < len(self) and 0 <= frame < self.clip_len):
            return None
        return np.asarray(maps[clip, frame].ravel())

    def trace(self, clip: int) -> FrameFixationTrace | None:
        """The trace of a clip; None where there is none.

        Points of files without ``widths``, ``heights`` and ``grids`` are squares of unknown grid. A file with
        k = 0 gives frames without points (one padding point in the reference).
        """
        if not 0 <= clip < len(self):
            return None
        part = {name: values[clip] for name, values in self._tensors.items() if name != "visibility_maps"}
        columns = (
            np.broadcast_to(np.arange(self.clip_len)[:, None], (self.clip_len, self.k)),
            part["fixations"][..., 0],
            part["fixations"][..., 1],
            part.get("widths", part["scales"]),
            part.get("heights", part["scales"]),
            part["confidences"],
            part.get("grids", np.zeros_like(part["scales"])),
        )
        rows = np.stack(columns, axis=-1).astype(np.float32)
        counts = part.get("point_counts", np.full(self.clip_len, self.k))
        rows = rows[np.arange(self.k) < counts[:, None]]
        return FrameFixationTrace.from_array(rows, self.clip_len, part["stop_probabilities"])


def _tensor(
    tensors: Mapping[str, NDArray[Any]], name: str, shape: tuple[int, ...] | None = None
) -> NDArray[np.float32]:
    if name not in tensors:
        raise InvalidInputError(f"the store has no tensor {name}; it has {sorted(tensors)}")
    values = _floats(name, tensors[name])
    if shape is not None and values.shape != shape:
        raise InvalidInputError(
            f"{name} has shape {list(values.shape)}; next to these fixations it must be {list(shape)}"
        )
    return values


def _floats(name: str, values: NDArray[Any]) -> NDArray[np.float32]:
    if values.dtype not in (np.float32, np.float16):
        raise InvalidInputError(f"{name} is {values.dtype}; it must be float32 or float16")
    if np.isnan(values).any():
        raise InvalidInputError(f"{name} holds a NaN; every value must be a number")
    return values.astype(np.float32)
