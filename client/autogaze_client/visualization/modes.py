"""The choices of a visualisation, with the spellings that they accept (spec: visualization §3 to §6)."""

from __future__ import annotations

from enum import Enum
from typing import TypeVar

from autogaze_client._errors import InvalidInputError

__all__ = [
    "AutoGazeMaskGeometryMode",
    "AutoGazeMaskVisualizationMode",
    "AutoGazeTensorInterframePath",
    "AutoGazeVisualizationMode",
]

_Mode = TypeVar("_Mode", bound="_NamedMode")


class _NamedMode(str, Enum):
    """A mode whose value is its name; ``parse`` also takes the other spellings."""

    def as_str(self) -> str:
        """The name."""
        return str(self.value)

    def __str__(self) -> str:
        return str(self.value)

    @classmethod
    def _spellings(cls) -> dict[str, tuple[str, ...]]:
        return {}

    @classmethod
    def parse(cls: type[_Mode], value: _Mode | str) -> _Mode:
        """The mode of a name or another accepted spelling; blanks around it and case do not matter.

        Raises:
            InvalidInputError: the name is unknown.
        """
        if isinstance(value, cls):
            return value
        name = str(value).strip().lower()
        for mode in cls:
            if name == mode.value or name in cls._spellings().get(str(mode.value), ()):
                return mode
        raise InvalidInputError(
            f"{value!r} is no {_WORDS[cls.__name__]}; use one of {', '.join(str(mode.value) for mode in cls)}"
        )


class AutoGazeVisualizationMode(_NamedMode):
    """What the output panel shows: the frame tinted where it was gazed at, or a video that updates only there."""

    FULL_BLEND = "full-blend"
    INTERFRAME = "interframe"

    @classmethod
    def _spellings(cls) -> dict[str, tuple[str, ...]]:
        return {
            "full-blend": ("blend", "full", "alpha", "alphablend", "alpha-blend"),
            "interframe": ("inter-frame", "video", "video-encoding", "delta"),
        }


class AutoGazeMaskVisualizationMode(_NamedMode):
    """What the mask panel shows.

    ``overlay``: cells in the colours of their scales on black. ``image-overlay``: the same mixed into the
    frame. ``image-mask-only``: the mixed cells alone, the rest transparent. ``scale-rows``: one band for each
    scale that has cells.
    """

    OVERLAY = "overlay"
    IMAGE_OVERLAY = "image-overlay"
    IMAGE_MASK_ONLY = "image-mask-only"
    SCALE_ROWS = "scale-rows"

    @classmethod
    def _spellings(cls) -> dict[str, tuple[str, ...]]:
        return {
            "overlay": ("combined", "union", "native", "native-overlay"),
            "image-overlay": (
                "image",
                "input-overlay",
                "source-overlay",
                "alpha-overlay",
                "alpha-blend-overlay",
            ),
            "image-mask-only": (
                "mask-only",
                "image-mask",
                "masked-image",
                "input-mask-only",
                "source-mask-only",
            ),
            "scale-rows": ("rows", "per-scale", "upstream", "nvidia"),
        }


class AutoGazeMaskGeometryMode(_NamedMode):
    """Which pixels cells stand for.

    ``native``: every cell at its own size. ``deduplicated``: cells that larger ones cover are left out; the
    covered pixels are the same. ``effective``: each cell becomes the one cell of the finest grid that holds
    its centre.
    """

    NATIVE = "native"
    DEDUPLICATED = "deduplicated"
    EFFECTIVE = "effective"

    @classmethod
    def _spellings(cls) -> dict[str, tuple[str, ...]]:
        return {
            "native": ("raw", "upstream", "nvidia", "multiscale", "multi-scale"),
            "deduplicated": (
                "dedup",
                "dedupe",
                "union",
                "union-dedup",
                "union-deduplicated",
                "non-overlap",
                "non-overlapping",
            ),
            "effective": (
                "projected",
                "finest",
                "finest-grid",
                "sparse-footprint",
                "token-footprint",
            ),
        }


class AutoGazeTensorInterframePath(_NamedMode):
    """How an interframe output was put together. All but ``keyframe`` show the same pixels."""

    KEYFRAME = "keyframe"
    SPARSE_RECTS = "sparse-rects"
    DENSE_MASK = "dense-mask"
    FULL_FRAME = "full-frame"


_WORDS = {
    "AutoGazeVisualizationMode": "visualization mode",
    "AutoGazeMaskVisualizationMode": "mask style",
    "AutoGazeMaskGeometryMode": "mask geometry",
    "AutoGazeTensorInterframePath": "interframe path",
}
