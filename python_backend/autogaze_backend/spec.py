"""The architecture of a checkpoint, read strictly from its ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from autogaze_client._errors import CheckpointError, InvalidInputError
from autogaze_client.layouts import AutoGazeScaleTokenLayout, parse_scales, scale_token_layouts

_MISSING = object()


@dataclass(frozen=True)
class RotaryScaling:
    """The ``llama3`` frequency scaling of ``rope_scaling``."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class ModelSpec:
    """Everything about a checkpoint that shapes its graphs or its generation rules.

    Attributes:
        scales: side of each scale in pixels, ascending.
        tokens_per_frame: N, ids of a frame; also the padding (end) id.
        group_size: K, tokens chosen a step.
        input_size: side of the square model input in pixels.
        patch_size: side of an encoder patch in pixels.
        encoder_depth: number of convolution blocks.
        temporal_kernel: frames that a block looks at, itself included.
        spatial_kernel: side of a block's kernel in patches.
        hidden_size: width of encoder and decoder.
        default_gazing_ratio: budget when the caller gives none, or None if the config has no fixed one.
        default_task_loss_requirement: stop when the caller gives neither a cap nor a requirement, or None.
    """

    scales: tuple[int, ...]
    tokens_per_frame: int
    group_size: int
    input_size: int
    patch_size: int
    encoder_depth: int
    temporal_kernel: int
    spatial_kernel: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RotaryScaling | None
    default_gazing_ratio: float | None
    default_task_loss_requirement: float | None
    max_num_frames: int

    @property
    def vocab_size(self) -> int:
        """V = N + 1: the ids of a frame and the padding id."""
        return self.tokens_per_frame + 1

    @property
    def vision_grid(self) -> int:
        """Patches per side of the encoder's map."""
        return self.input_size // self.patch_size

    @property
    def vision_tokens(self) -> int:
        """Tokens that the encoder gives for a frame."""
        return self.vision_grid**2

    @cached_property
    def scale_layouts(self) -> tuple[AutoGazeScaleTokenLayout, ...]:
        """The scales of the ids, in id order."""
        config = {
            "scales": "+".join(map(str, self.scales)),
            "num_vision_tokens_each_frame": self.tokens_per_frame,
            "gaze_model_config": {"vision_model_config": {"kernel_size": self.patch_size}},
        }
        return scale_token_layouts(config)

    @property
    def graph_name(self) -> str:
        """Names the traced graphs: two checkpoints with the same name share them."""
        return (
            f"v{self.vocab_size}-k{self.group_size}-h{self.hidden_size}-f{self.intermediate_size}"
            f"-l{self.num_layers}-a{self.num_heads}-d{self.encoder_depth}"
            f"-t{self.temporal_kernel}-s{self.spatial_kernel}-p{self.patch_size}-i{self.input_size}"
            f"-eps{self.rms_norm_eps:g}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; ``from_dict`` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelSpec:
        """Reads what ``to_dict`` wrote."""
        scaling = values["rope_scaling"]
        return cls(
            **{
                **values,
                "scales": tuple(values["scales"]),
                "rope_scaling": None if scaling is None else RotaryScaling(**scaling),
            }
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelSpec:
        """Reads a checkpoint's ``config.json`` (spec: pipeline §1).

        Unknown keys are ignored, as saved configs carry many generic ones; a key that would change the
        computation is refused when its value is not supported.

        Raises:
            CheckpointError: a key is missing, of the wrong type, or asks for something unsupported; the
                message names the key, what was expected and what was found.
        """
        read = _Reader(config)
        read.require("model_type", "autogaze")
        vision = read.child("gaze_model_config").child("vision_model_config")
        decoder = read.child("gaze_model_config").child("gaze_decoder_config")
        tokens = read.integer("num_vision_tokens_each_frame")
        decoder.require("hidden_act", "silu")
        for flag in ("attention_bias", "mlp_bias", "tie_word_embeddings"):
            decoder.require(flag, False, default=False)
        decoder.require("eos_token_id", tokens, default=tokens)
        decoder.require("vocab_size", tokens + 1, default=tokens + 1)
        hidden = decoder.integer("hidden_size")
        heads = decoder.integer("num_attention_heads")
        decoder.require("num_key_value_heads", heads, default=heads)
        vision.require("temporal_patch_size", 1)
        vision.require("hidden_dim", hidden)
        vision.require("out_dim", hidden)
        read.child("gaze_model_config").require("num_vision_tokens_each_frame", tokens, default=tokens)
        head_dim = decoder.integer("head_dim", default=hidden // heads)
        if heads * head_dim != hidden or head_dim % 2:
            raise CheckpointError(
                f"config.json: {heads} heads of head_dim {head_dim} do not make hidden_size {hidden} with an even "
                "head_dim; only such decoders are supported"
            )
        spec = cls(
            scales=_scales(read.value("scales")),
            tokens_per_frame=tokens,
            group_size=decoder.integer("num_multi_token_pred", default=1),
            input_size=read.child("gaze_model_config").integer("input_img_size", default=224),
            patch_size=vision.integer("kernel_size"),
            encoder_depth=vision.integer("depth"),
            temporal_kernel=vision.integer("trunk_temporal_kernel_size"),
            spatial_kernel=vision.integer("trunk_spatial_kernel_size"),
            hidden_size=hidden,
            intermediate_size=decoder.integer("intermediate_size"),
            num_layers=decoder.integer("num_hidden_layers"),
            num_heads=heads,
            head_dim=head_dim,
            rms_norm_eps=decoder.number("rms_norm_eps", default=1e-6),
            rope_theta=decoder.number("rope_theta", default=10000.0),
            rope_scaling=_rope_scaling(decoder),
            default_gazing_ratio=_fixed(read, "gazing_ratio_config", "gazing_ratio"),
            default_task_loss_requirement=_default_requirement(read),
            max_num_frames=read.integer("max_num_frames", default=16),
        )
        _check_geometry(spec)
        return spec


def _scales(value: str | int) -> tuple[int, ...]:
    try:
        return parse_scales(value)
    except InvalidInputError as error:
        raise CheckpointError(f"config.json: {error}") from error


def _check_geometry(spec: ModelSpec) -> None:
    if spec.input_size % spec.patch_size:
        raise CheckpointError(
            f"config.json: input_img_size {spec.input_size} is no multiple of kernel_size {spec.patch_size}"
        )
    if spec.spatial_kernel % 2 == 0:
        raise CheckpointError(
            f"config.json: trunk_spatial_kernel_size is {spec.spatial_kernel}; only odd kernels keep the map's size"
        )
    if spec.group_size > spec.vision_tokens:
        raise CheckpointError(
            f"config.json: num_multi_token_pred {spec.group_size} exceeds the {spec.vision_tokens} vision tokens of a "
            "frame, whose positions the groups reuse"
        )
    counts = [layout.token_count for layout in spec.scale_layouts]
    if any(layout.token_count != layout.grid**2 for layout in spec.scale_layouts):
        raise CheckpointError(
            f"config.json: scales {'+'.join(map(str, spec.scales))} with {spec.tokens_per_frame} tokens give {counts} "
            "tokens a scale, which are not all square grids; such layouts have no geometry"
        )


def _rope_scaling(decoder: _Reader) -> RotaryScaling | None:
    if decoder.value("rope_scaling", default=None) is None:
        return None
    scaling = decoder.child("rope_scaling")
    kind = scaling.value("rope_type", default=scaling.value("type", default="llama3"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise CheckpointError(
            f"config.json: {scaling.path}rope_type is {kind!r}; expected 'llama3' or 'default'"
        )
    return RotaryScaling(
        factor=scaling.number("factor"),
        low_freq_factor=scaling.number("low_freq_factor"),
        high_freq_factor=scaling.number("high_freq_factor"),
        original_max_position_embeddings=scaling.integer("original_max_position_embeddings"),
    )


def _fixed(read: _Reader, section: str, name: str) -> float | None:
    """The value of a ``fixed`` inference strategy; other strategies draw at random and give no default."""
    if read.value(section, default=None) is None:
        return None
    reader = read.child(section)
    if reader.value("sample_strategy_during_inference", default="fixed") != "fixed":
        return None
    return reader.child("fixed").number(name)


def _default_requirement(read: _Reader) -> float | None:
    if read.value("has_task_loss_requirement_during_inference", default=False) is not True:
        return None
    return _fixed(read, "task_loss_requirement_config", "task_loss_requirement")


class _Reader:
    """Typed access to a JSON object, with the full path of a key in every error."""

    def __init__(self, values: object, path: str = "") -> None:
        if not isinstance(values, Mapping):
            raise CheckpointError(
                f"config.json: {path.rstrip('.') or 'the file'} is {type(values).__name__}; expected a JSON object"
            )
        self._values, self.path = values, path

    def value(self, key: str, default: object = _MISSING) -> Any:
        if key in self._values:
            return self._values[key]
        if default is _MISSING:
            raise CheckpointError(f"config.json: {self.path}{key} is missing")
        return default

    def child(self, key: str) -> _Reader:
        return _Reader(self.value(key), f"{self.path}{key}.")

    def integer(self, key: str, default: object = _MISSING) -> int:
        found = self.value(key, default)
        if not isinstance(found, int) or isinstance(found, bool) or found < 1:
            raise CheckpointError(
                f"config.json: {self.path}{key} is {found!r}; expected an integer of at least 1"
            )
        return found

    def number(self, key: str, default: object = _MISSING) -> float:
        found = self.value(key, default)
        if not isinstance(found, int | float) or isinstance(found, bool) or not 0 <= found < float("inf"):
            raise CheckpointError(
                f"config.json: {self.path}{key} is {found!r}; expected a finite number of at least 0"
            )
        return float(found)

    def require(self, key: str, expected: object, default: object = _MISSING) -> None:
        found = self.value(key, default)
        if found != expected or isinstance(found, bool) != isinstance(expected, bool):
            raise CheckpointError(
                f"config.json: {self.path}{key} is {found!r}; only {expected!r} is supported"
            )
