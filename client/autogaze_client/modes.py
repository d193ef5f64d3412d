"""How a frame of any size becomes the square input of the model."""

from __future__ import annotations

from enum import Enum

from autogaze_client._errors import InvalidInputError


class AutoGazeInferenceMode(str, Enum):
    """Inference mode of a request (the seed's table).

    ``code`` is the INT32 that travels as ``MODE``.
    """

    RESIZE_TO_MODEL_INPUT = "resize"
    TILED_RESIZE_TO_GRID = "tiled_resize_to_grid"
    TILED_FULL_RESOLUTION = "tiled_full_resolution"

    @property
    def code(self) -> int:
        """The wire value: 0 resize, 1 tiled_resize_to_grid, 2 tiled_full_resolution."""
        return list(AutoGazeInferenceMode).index(self)

    @property
    def is_tiled(self) -> bool:
        """Whether the rows of the generated output are tiles of the frame."""
        return self is not AutoGazeInferenceMode.RESIZE_TO_MODEL_INPUT

    def fixation_budget(self, k: int, height: int, width: int, tile_size: int = 224) -> int:
        """Fixations of a frame where each input of the model gives ``k``: k a tile, or k.

        Args:
            k: fixations an input of the model.
            height: of the frame, in pixels.
            width: likewise.
            tile_size: side of a tile, in pixels; 224 in this package.

        Raises:
            InvalidInputError: one of them is below 1.

        Example:
            >>> AutoGazeInferenceMode.TILED_RESIZE_TO_GRID.fixation_budget(2, 1080, 1920)
            90
        """
        for name, value in (("k", k), ("height", height), ("width", width), ("tile_size", tile_size)):
            if value < 1:
                raise InvalidInputError(f"{name} is {value}; it must be at least 1")
        return k * (-(-height // tile_size) * -(-width // tile_size) if self.is_tiled else 1)

    @classmethod
    def from_code(cls, code: int) -> AutoGazeInferenceMode:
        """The mode of a wire value.

        Raises:
            InvalidInputError: ``code`` is not 0, 1 or 2.
        """
        modes = list(cls)
        if not 0 <= code < len(modes):
            known = ", ".join(f"{mode.code} = {mode.value}" for mode in modes)
            raise InvalidInputError(f"MODE is {code}, which is no inference mode; use one of {known}")
        return modes[code]

    @classmethod
    def parse(cls, value: AutoGazeInferenceMode | str) -> AutoGazeInferenceMode:
        """Accepts a mode or its name, in any case, with ``-`` or ``_``.

        Raises:
            InvalidInputError: the name is unknown.
        """
        if isinstance(value, cls):
            return value
        name = str(value).strip().lower().replace("-", "_")
        for mode in cls:
            if name in (mode.value, mode.name.lower()):
                return mode
        raise InvalidInputError(
            f"{value!r} is no inference mode; use one of {', '.join(mode.value for mode in cls)}"
        )
