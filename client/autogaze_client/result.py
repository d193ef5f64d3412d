"""What a gaze request returns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autogaze_client._errors import InvalidInputError, MissingExtraError
from autogaze_client.fixations import FrameFixationTrace
from autogaze_client.generated import AutoGazeGenerateOutput
from autogaze_client.modes import AutoGazeInferenceMode

__all__ = ["GazeResult", "GazeTimings", "SourceSize"]


@dataclass(frozen=True)
class SourceSize:
    """Frames, height and width of what was gazed at, in frames and pixels."""

    frames: int
    height: int
    width: int


@dataclass(frozen=True)
class GazeTimings:
    """Where the time of a result went, in milliseconds.

    Attributes:
        read_ms: decoding video on this side; 0 where frames or encoded bytes were given.
        request_ms: from sending a request to having its response, summed over requests. Windows of a video
            overlap, so the sum may exceed the elapsed time.
        decode_ms: turning response tensors into a result.
        server_ms: time inside the server's models, where it is known (``GazeClient.statistics``).
        requests: how many requests the result is made of.
    """

    read_ms: float = 0.0
    request_ms: float = 0.0
    decode_ms: float = 0.0
    server_ms: float | None = None
    requests: int = 1

    @classmethod
    def total(cls, parts: Sequence[GazeTimings]) -> GazeTimings:
        """The sum; ``server_ms`` is known only where every part knows it."""
        servers = [part.server_ms for part in parts if part.server_ms is not None]
        return cls(
            read_ms=sum(part.read_ms for part in parts),
            request_ms=sum(part.request_ms for part in parts),
            decode_ms=sum(part.decode_ms for part in parts),
            server_ms=sum(servers) if len(servers) == len(parts) else None,
            requests=sum(part.requests for part in parts),
        )

    def to_dict(self) -> dict[str, float | int | None]:
        """The JSON form: the field names."""
        return {
            "read_ms": self.read_ms,
            "request_ms": self.request_ms,
            "decode_ms": self.decode_ms,
            "server_ms": self.server_ms,
            "requests": self.requests,
        }


@dataclass(frozen=True, eq=False)
class GazeResult:
    """The gaze on one clip.

    Attributes:
        generated: the chosen tokens. In tiled modes its rows are tiles, row-major, and ids are local to a
            tile.
        fixations: float32 ``[n, 7]`` in source coordinates: frame, x, y (centre), width, height (0..1),
            confidence, grid.
        mode: how frames became the model's input.
        source_size: frames, height and width of the clip.
        timings: where the time went.
        timestamps: float64 ``[T]``, the second at which each frame is shown, on the video's own clock; None
            where the frames were an array, or decoded by the server.
    """

    generated: AutoGazeGenerateOutput
    fixations: NDArray[np.float32]
    mode: AutoGazeInferenceMode
    source_size: SourceSize
    timings: GazeTimings = field(default_factory=GazeTimings)
    timestamps: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        if self.fixations.ndim != 2 or self.fixations.shape[1] != 7:
            raise InvalidInputError(f"fixations has shape {self.fixations.shape}; it must be [n, 7]")
        frames = len(self.generated.num_gazing_each_frame)
        if frames != self.source_size.frames:
            raise InvalidInputError(
                f"num_gazing_each_frame covers {frames} frames, but the source has "
                f"{self.source_size.frames}; "
                "they must agree"
            )
        if self.timestamps is not None and self.timestamps.shape != (frames,):
            raise InvalidInputError(
                f"timestamps has shape {list(self.timestamps.shape)}; it must be one a frame, [{frames}]"
            )

    @classmethod
    def _of_one_row(
        cls,
        generated: AutoGazeGenerateOutput,
        mode: AutoGazeInferenceMode,
        source_size: SourceSize,
        timings: GazeTimings,
    ) -> GazeResult:
        """A result whose fixations are those of the only row, computed by whoever first reads them."""
        result = cls.__new__(cls)
        vars(result).update(
            generated=generated, mode=mode, source_size=source_size, timings=timings, timestamps=None
        )
        return result

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "fixations": self.fixations}

    @cached_property
    def trace(self) -> FrameFixationTrace:
        """The clip's fixations, one set a frame, in source coordinates.

        Raises:
            InvalidInputError: the fixations hold a NaN or a frame outside the clip.
        """
        stops = self.generated.stop_probabilities.max(axis=0, initial=0.0)
        return FrameFixationTrace.from_array(self.fixations, self.source_size.frames, stops)

    @property
    def traces(self) -> tuple[FrameFixationTrace, ...]:
        """One trace a clip; a result is one clip."""
        return (self.trace,)

    @property
    def tokens_per_frame(self) -> NDArray[np.int64]:
        """int64 ``[T]``, chosen tokens, padding excluded, summed over tiles in tiled modes."""
        return np.asarray(self.generated.tokens_of_rows.sum(axis=0))

    @property
    def gaze_ratio_per_frame(self) -> NDArray[np.float64]:
        """float64 ``[T]``, chosen tokens / tokens that could be chosen (N a row)."""
        return np.asarray(self.tokens_per_frame / max(self._vocabulary, 1))

    @property
    def gaze_ratio(self) -> float:
        """Chosen tokens / tokens that could be chosen, over the whole clip; 0..1."""
        return float(self.tokens_per_frame.sum() / max(self._vocabulary * self.source_size.frames, 1))

    @property
    def _vocabulary(self) -> int:
        return self.generated.num_vision_tokens_each_frame * len(self.generated.gazing_pos)

    def gazing_info(self, *, as_torch: bool = False) -> dict[str, Any]:
        """The keyword arguments that upstream's sparse ViT takes as ``gazing_info``.

        Args:
            as_torch: gives torch tensors, which the ViT takes, instead of numpy arrays.

        Returns:
            ``gazing_pos`` int64 ``[1, S]``, ``num_gazing_each_frame`` int64 ``[T]`` and
            ``if_padded_gazing`` bool ``[1, S]``.

        Raises:
            InvalidInputError: the result is tiled: ids are local to tiles, which no sparse ViT expects.
            MissingExtraError: torch is asked for and not installed.
        """
        if self.mode.is_tiled:
            raise InvalidInputError(
                f"gazing_info() needs the ids of whole frames, but mode {self.mode.value} gives "
                f"{len(self.generated.gazing_pos)} tiles; use mode 'resize' (with target_scales for "
                "more detail), "
                "or read .fixations"
            )
        info: dict[str, Any] = {
            "gazing_pos": self.generated.gazing_pos,
            "num_gazing_each_frame": self.generated.num_gazing_each_frame,
            "if_padded_gazing": self.generated.if_padded_gazing,
        }
        if not as_torch:
            return info
        try:
            import torch
        except ImportError as error:
            raise MissingExtraError.for_extra("gazing_info(as_torch=True)", "export", error) from error
        # A copy: numpy's arrays may be read-only views of a response.
        return {name: torch.from_numpy(array.copy()) for name, array in info.items()}

    @classmethod
    def concatenate(cls, parts: Sequence[GazeResult]) -> GazeResult:
        """Joins consecutive clips of one video in time; frames count on from part to part.

        Timestamps are joined where every part has them, else None.

        Raises:
            InvalidInputError: no parts, or parts of different modes, frame sizes, tiles or scales.
        """
        if not parts:
            raise InvalidInputError("there are no results to concatenate; pass at least one")
        first = parts[0]
        fixations, timestamps, frames = [], [], 0
        for part in parts:
            size = part.source_size
            if (part.mode, size.height, size.width) != (
                first.mode,
                first.source_size.height,
                first.source_size.width,
            ):
                raise InvalidInputError(
                    f"a {part.mode.value} result of {size.width}x{size.height} cannot follow a "
                    f"{first.mode.value} "
                    f"result of {first.source_size.width}x{first.source_size.height}; join parts of one video"
                )
            if part.timestamps is not None:
                timestamps.append(part.timestamps)
            shift = np.array([frames, 0, 0, 0, 0, 0, 0], np.float32)
            fixations.append(part.fixations + shift)
            frames += size.frames
        return cls(
            generated=AutoGazeGenerateOutput.concatenate([part.generated for part in parts]),
            fixations=np.concatenate(fixations),
            mode=first.mode,
            source_size=SourceSize(frames, first.source_size.height, first.source_size.width),
            timings=GazeTimings.total([part.timings for part in parts]),
            timestamps=np.concatenate(timestamps) if len(timestamps) == len(parts) else None,
        )

    def metrics(self) -> dict[str, Any]:
        """Token counts, ratios and timings, ready for JSON."""
        return {
            "frames": self.source_size.frames,
            "tokens_per_frame": self.tokens_per_frame.tolist(),
            "gaze_ratio": self.gaze_ratio,
            "gaze_ratio_per_frame": self.gaze_ratio_per_frame.tolist(),
            "timings": self.timings.to_dict(),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values: mode, source size, scales, token counts, timings, timestamps, and every frame's fixations."""
        return {
            "mode": self.mode.value,
            "source_size": {
                "frames": self.source_size.frames,
                "height": self.source_size.height,
                "width": self.source_size.width,
            },
            "scales": [
                {"grid": layout.grid, "token_count": layout.token_count}
                for layout in self.generated.scale_layouts
            ],
            "tokens_per_frame": self.tokens_per_frame.tolist(),
            "gaze_ratio": self.gaze_ratio,
            "timings": self.timings.to_dict(),
            "timestamps": None if self.timestamps is None else self.timestamps.tolist(),
            **self.trace.to_dict(),
        }

    def write_json(self, path: str | Path) -> Path:
        """Writes ``to_dict()`` as strict JSON and returns the path."""
        return write_json(path, self.to_dict())


# Set here: in the class a dataclass would take it for the field's default. It stands where a result holds none.
_FIXATIONS = cached_property(lambda result: result.generated.fixations(0))
_FIXATIONS.__set_name__(GazeResult, "fixations")
GazeResult.fixations = _FIXATIONS  # type: ignore[assignment]


def write_json(path: str | Path, value: Mapping[str, Any]) -> Path:
    """Writes strict JSON (no NaN) with a final newline.

    Raises:
        InvalidInputError: a value is NaN or infinite.
    """
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError as error:
        raise InvalidInputError(
            f"{Path(path).name} cannot hold NaN or infinity ({error}); replace them"
        ) from error
    target = Path(path)
    target.write_text(text + "\n", encoding="utf-8")
    return target
