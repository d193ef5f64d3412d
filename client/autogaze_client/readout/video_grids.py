"""Video grids, patch geometry, options and projection of a readout (spec: readout §4)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from autogaze_client._errors import InvalidInputError
from autogaze_client.readout import _checks
from autogaze_client.readout.grids import SparseReadoutGrid, SparseReadoutOptions

__all__ = [
    "SparseVideoPatchGeometry",
    "SparseVideoReadoutGrid",
    "SparseVideoReadoutOptions",
    "SparseVideoReadoutProjection",
]


@dataclass(frozen=True, slots=True)
class SparseVideoReadoutGrid:
    """The token grid of a video model: token = ``(bin · height + row) · width + col``.

    A side may be 0, which makes the grid empty; functions that place tokens on it then raise.

    Raises:
        InvalidInputError: a side is negative or no integer.
    """

    temporal_bins: int
    height: int
    width: int

    def __post_init__(self) -> None:
        for name in ("temporal_bins", "height", "width"):
            _checks.count(name, getattr(self, name))

    @property
    def token_count(self) -> int:
        """Tokens of the grid."""
        return self.temporal_bins * self.tokens_per_temporal_bin

    @property
    def tokens_per_temporal_bin(self) -> int:
        """Tokens of one bin."""
        return self.height * self.width

    @property
    def is_empty(self) -> bool:
        """Whether a side is 0."""
        return self.token_count == 0

    def token_index(self, temporal_bin: int, row: int, col: int) -> int | None:
        """The token at a place, or None outside the grid."""
        inside = 0 <= temporal_bin < self.temporal_bins and 0 <= row < self.height and 0 <= col < self.width
        return (temporal_bin * self.height + row) * self.width + col if inside else None

    def token_coords(self, token: int) -> tuple[int, int, int] | None:
        """Bin, row and column of a token, or None outside the grid."""
        if not 0 <= token < self.token_count:
            return None
        temporal_bin, local = divmod(token, self.tokens_per_temporal_bin)
        return (temporal_bin, *divmod(local, self.width))

    def require_tokens(self, name: str) -> None:
        """Refuses an empty grid.

        Raises:
            InvalidInputError: a side is 0.
        """
        if self.is_empty:
            sides = f"{self.temporal_bins}x{self.height}x{self.width}"
            raise InvalidInputError(f"the {name} is {sides} (bins, rows, columns); all must be at least 1")


@dataclass(frozen=True, slots=True)
class SparseVideoPatchGeometry:
    """How a video model cuts a clip into tokens.

    Attributes:
        frames: frames of the clip.
        height: of a frame, in pixels.
        width: of a frame, in pixels.
        tubelet_size: frames of one token.
        patch_h: rows of pixels of one token.
        patch_w: columns of pixels of one token.

    Example:
        >>> SparseVideoPatchGeometry.square_patch(16, 256, 256, 2, 16).readout_grid()
        SparseVideoReadoutGrid(temporal_bins=8, height=16, width=16)
    """

    frames: int
    height: int
    width: int
    tubelet_size: int
    patch_h: int
    patch_w: int

    @classmethod
    def square_patch(
        cls, frames: int, height: int, width: int, tubelet: int, patch: int
    ) -> SparseVideoPatchGeometry:
        """The geometry of a model with square patches."""
        return cls(frames, height, width, tubelet, patch, patch)

    def readout_grid(self) -> SparseVideoReadoutGrid:
        """The token grid: frames / tubelet size, height / patch height, width / patch width.

        Raises:
            InvalidInputError: a size is below 1, or does not divide by its patch.
        """
        for name in ("frames", "height", "width", "tubelet_size", "patch_h", "patch_w"):
            _checks.count(name, getattr(self, name), 1)
        sides = []
        for name, divisor in (("frames", "tubelet_size"), ("height", "patch_h"), ("width", "patch_w")):
            size, part = getattr(self, name), getattr(self, divisor)
            if size % part:
                raise InvalidInputError(
                    f"{name} is {size}, which is not divisible by {divisor} {part}; resize, crop or pad the clip"
                )
            sides.append(size // part)
        return SparseVideoReadoutGrid(*sides)


@dataclass(frozen=True, slots=True)
class SparseVideoReadoutOptions:
    """How frames become tokens of a video model.

    Attributes:
        tubelet_size: consecutive frames that share one temporal bin.
        dilation: grows every cell's range of tokens by so many tokens on each side, clipped at borders.
        min_tokens: fills up to so many tokens with ones that are not gazed at, evenly spaced first; never
            above ``max_tokens`` or the grid.
        max_tokens: keeps the first so many tokens of the clip, in order of time; None = all.

    Raises:
        InvalidInputError: a value is negative or no integer. A tubelet size of 0 is refused where it is used.
    """

    tubelet_size: int = 1
    dilation: int = 0
    min_tokens: int = 0
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("tubelet_size", "dilation", "min_tokens"):
            _checks.count(name, getattr(self, name))
        if self.max_tokens is not None:
            _checks.count("max_tokens", self.max_tokens)

    def with_tubelet_size(self, tubelet_size: int) -> SparseVideoReadoutOptions:
        """A copy with another tubelet size."""
        return replace(self, tubelet_size=tubelet_size)

    def with_dilation(self, dilation: int) -> SparseVideoReadoutOptions:
        """A copy with another dilation."""
        return replace(self, dilation=dilation)

    def with_min_tokens(self, min_tokens: int) -> SparseVideoReadoutOptions:
        """A copy with another minimum."""
        return replace(self, min_tokens=min_tokens)

    def with_max_tokens(self, max_tokens: int | None) -> SparseVideoReadoutOptions:
        """A copy with another cap."""
        return replace(self, max_tokens=max_tokens)

    def with_exact_tokens(self, tokens: int) -> SparseVideoReadoutOptions:
        """A copy that gives ``tokens`` tokens whatever was gazed at, for models of a fixed token count."""
        return replace(self, min_tokens=tokens, max_tokens=tokens)


@dataclass(frozen=True, slots=True)
class SparseVideoReadoutProjection:
    """Both grids and both options of a readout in one object.

    Attributes:
        image_grid: the grid that every frame is first read out on; None projects the cells onto the video
            grid directly, which rounds once instead of twice (not in the reference).
        video_grid: the grid of the video model.
        readout_options: of the frames.
        video_options: of the clip.
    """

    image_grid: SparseReadoutGrid | None
    video_grid: SparseVideoReadoutGrid
    readout_options: SparseReadoutOptions = field(default_factory=SparseReadoutOptions)
    video_options: SparseVideoReadoutOptions = field(default_factory=SparseVideoReadoutOptions)

    @classmethod
    def new(
        cls, image_grid: SparseReadoutGrid | None, video_grid: SparseVideoReadoutGrid
    ) -> SparseVideoReadoutProjection:
        """A projection with default options."""
        return cls(image_grid, video_grid)

    @classmethod
    def from_patch_geometry(
        cls, image_grid: SparseReadoutGrid | None, geometry: SparseVideoPatchGeometry
    ) -> SparseVideoReadoutProjection:
        """The projection onto a model's grid, its tubelet size included (the reference leaves that at 1).

        Raises:
            InvalidInputError: the geometry does not divide.
        """
        options = SparseVideoReadoutOptions(tubelet_size=geometry.tubelet_size)
        return cls(image_grid, geometry.readout_grid(), video_options=options)

    def with_readout_options(self, readout_options: SparseReadoutOptions) -> SparseVideoReadoutProjection:
        """A copy with other options of the frames."""
        return replace(self, readout_options=readout_options)

    def with_video_options(self, video_options: SparseVideoReadoutOptions) -> SparseVideoReadoutProjection:
        """A copy with other options of the clip.

        They carry their own tubelet size: start from ``projection.video_options`` to keep the geometry's.
        """
        return replace(self, video_options=video_options)
