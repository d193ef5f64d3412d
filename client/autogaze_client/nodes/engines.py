"""What may stand behind a pipeline, and how it is found."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from autogaze_client._arrays import Array
from autogaze_client._config import check_url
from autogaze_client._errors import InvalidInputError, MissingExtraError, NotFoundError
from autogaze_client.generated import AutoGazeGenerateOutput
from autogaze_client.layouts import layouts_from_grids
from autogaze_client.modes import AutoGazeInferenceMode
from autogaze_client.readout.patch_diff import AutoGazePatchDiffConfig, patch_diff_readout_points
from autogaze_client.result import GazeResult, SourceSize

__all__ = ["ENGINE_GROUP", "GazeEngine", "PatchDiffEngine", "load_engine", "patch_diff_result"]

ENGINE_GROUP = "autogaze.engines"
"""Entry points of this group load a bundle: ``load(path) -> GazeEngine``."""


@runtime_checkable
class GazeEngine(Protocol):
    """Gazes at one clip: ``GazeClient``, the in-process ``GazeModel``, or ``PatchDiffEngine``."""

    def gaze(
        self,
        frames: NDArray[np.uint8],
        /,
        *,
        mode: AutoGazeInferenceMode | str = ...,
        gazing_ratio: float | Sequence[float] | None = ...,
        task_loss_requirement: float | None = ...,
        max_gaze_tokens_each_frame: int | Sequence[int] | None = ...,
        top_k: int | None = ...,
    ) -> GazeResult:
        """The gaze on uint8 frames ``[T, H, W, 3 or 4]``."""


class PatchDiffEngine:
    """Gazes without a model: at the cells of the last frame that differ from the frame before.

    Args:
        config: grid and threshold, the latter of RGB in 0..1.

    Example:
        >>> frames = np.zeros((2, 28, 28, 3), np.uint8)
        >>> frames[1, 14:, 14:] = 255
        >>> PatchDiffEngine(AutoGazePatchDiffConfig(2, 0.25)).gaze(frames).generated.gazing_pos.tolist()
        [[7]]
    """

    def __init__(self, config: AutoGazePatchDiffConfig | None = None) -> None:
        self.config = config or AutoGazePatchDiffConfig()

    def gaze(
        self,
        frames: NDArray[np.uint8],
        /,
        *,
        mode: AutoGazeInferenceMode | str = AutoGazeInferenceMode.RESIZE_TO_MODEL_INPUT,
        gazing_ratio: float | Sequence[float] | None = None,
        task_loss_requirement: float | None = None,
        max_gaze_tokens_each_frame: int | Sequence[int] | None = None,
        top_k: int | None = None,
    ) -> GazeResult:
        """The gaze; the model's knobs and the mode do not apply.

        Raises:
            InvalidInputError: no uint8 frames ``[T, H, W, 3 or 4]``.
        """
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] not in (3, 4) or 0 in frames.shape:
            raise InvalidInputError(
                f"frames are {frames.dtype} {list(frames.shape)}; they must be uint8 [T, H, W, 3 or 4]"
            )
        last = frames[-2:, ..., :3].transpose(0, 3, 1, 2)[None] / np.float32(255)
        return patch_diff_result(last, self.config, frames.shape[0])


def patch_diff_result(video: Array, config: AutoGazePatchDiffConfig, frames: int | None = None) -> GazeResult:
    """The changed cells of one clip ``[1, T, C, H, W]`` as a result; ids are cells of the one grid, row-major.

    Raises:
        InvalidInputError: a shape that does not fit, or a threshold that is negative or not finite.
    """
    count = int(video.shape[1]) if frames is None else frames
    points = patch_diff_readout_points(video, config).points[0][-1]
    grid, n = config.grid_size, config.grid_size**2
    cells = np.array(
        [(p.x, p.y, p.width, p.height, p.confidence, p.grid) for p in points], np.float32
    ).reshape(-1, 6)
    ids = np.floor(cells[:, 1] * grid).astype(np.int64) * grid + np.floor(cells[:, 0] * grid).astype(np.int64)
    slots = np.zeros(count, np.int64)
    slots[-1] = len(ids)
    generated = AutoGazeGenerateOutput(
        gazing_pos=(ids + n * (count - 1))[None],
        if_padded_gazing=np.zeros((1, len(ids)), np.bool_),
        num_gazing_each_frame=slots,
        confidences=cells[None, :, 4],
        task_loss_predictions=np.full((1, len(ids)), np.nan, np.float32),
        scale_layouts=layouts_from_grids([grid]),
    )
    fixations = np.column_stack([np.full(len(cells), count - 1, np.float32), cells])
    size = SourceSize(count, int(video.shape[3]), int(video.shape[4]))
    return GazeResult(generated, fixations, AutoGazeInferenceMode.RESIZE_TO_MODEL_INPUT, size)


def load_engine(source: str | Path, **settings: Any) -> GazeEngine:
    """The engine of a bundle's folder, in this process, or a client of the server at ``host:port``.

    Args:
        source: the folder or the url.
        settings: go to ``GazeModel.load`` (such as ``device``) or ``GazeClient`` (such as ``tls``).

    Raises:
        NotFoundError: neither a folder nor a url.
        MissingExtraError: it is a folder, but no package that runs bundles is installed.
        AutoGazeError: the bundle cannot be loaded.
    """
    if Path(source).exists():
        return _in_process(Path(source), settings)
    try:
        url = check_url(str(source))
    except InvalidInputError as error:
        raise NotFoundError(
            f"{str(source)!r} is neither a bundle's folder nor host:port of a server; "
            "build a bundle with autogaze build, or start a server with autogaze serve"
        ) from error
    from autogaze_client._client import GazeClient

    return cast(GazeEngine, GazeClient(url, **settings))


def _in_process(bundle: Path, settings: dict[str, Any]) -> GazeEngine:
    entries = sorted(entry_points(group=ENGINE_GROUP), key=lambda entry: entry.name)
    if not entries:
        raise MissingExtraError(
            f"{bundle} is a bundle, but nothing here runs one (no entry point in {ENGINE_GROUP!r}): "
            "pip install 'autogaze-triton[server]', or pass host:port of a server"
        )
    try:
        load = entries[0].load()
    except ImportError as error:
        raise MissingExtraError.for_extra("running a bundle in this process", "server", error) from error
    return cast(GazeEngine, load(bundle, **settings))
