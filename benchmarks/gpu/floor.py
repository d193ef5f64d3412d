"""The least work that a clip needs: operations, bytes, calls; from the architecture and the schedule alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autogaze_backend.spec import ModelSpec


@dataclass(frozen=True)
class Floor:
    """Of one clip.

    Attributes:
        prefills: one a frame.
        steps: one for each group of a frame but its first.
        positions: tokens that enter the cache, vision and chosen ones.
        encoder: floating-point operations of the encoder.
        linear: of the decoder's linear layers and heads, at natural lengths.
        attention: of the decoder's attention, likewise.
        trimmed: linear and attention without the last layer's work on tokens that nobody reads.
        weights: parameters that a pass of the decoder reads.
        cache: numbers of the keys and values that a position leaves in the cache.
    """

    prefills: int
    steps: int
    positions: int
    encoder: float
    linear: float
    attention: float
    trimmed: float
    weights: int
    cache: int

    @property
    def operations(self) -> float:
        """What an implementation has to do."""
        return self.encoder + self.trimmed

    def memory_bytes(self, spec: ModelSpec, frames: int, *, number: int, pixel: int) -> int:
        """Device memory that one clip moves at least: pixels, all weights, the cache once in and once out.

        Args:
            spec: of the checkpoint.
            frames: of the clip.
            number: bytes of a weight and of a cached number.
            pixel: bytes of a pixel's value as it comes.
        """
        pixels = frames * 3 * spec.input_size**2 * pixel
        return (
            pixels
            + (self.weights + encoder_weights(spec)) * number
            + 2 * self.positions * self.cache * number
        )


def clip_floor(spec: ModelSpec, schedule: Sequence[int]) -> Floor:
    """Counts one clip whose frames take ``schedule`` tokens, none of them stopped early."""
    group, width, layers = spec.group_size, spec.hidden_size, spec.num_layers
    attention_weights, mlp_weights = 4 * width**2, 3 * width * spec.intermediate_size
    heads = group * spec.vocab_size * width + group * width
    per_token = 2.0 * (attention_weights + mlp_weights)
    passes: list[int] = []
    pending = 0
    for tokens in schedule:
        groups = -(-tokens // group)
        passes += [pending + spec.vision_tokens] + [group] * (groups - 1)
        pending = tokens - (groups - 1) * group
    linear = attention = trimmed = 0.0
    length = 0
    for fed in passes:
        keys = sum(range(length + 1, length + fed + 1))
        length += fed
        linear += fed * per_token * layers + 2 * heads
        attention += 4.0 * width * keys * layers
        # In the last layer every token leaves its key and value, but only the last one is read.
        last = fed * 2.0 * 2 * width**2 + 2.0 * (2 * width**2 + mlp_weights) + 4.0 * width * length
        trimmed += fed * per_token * (layers - 1) + 4.0 * width * keys * (layers - 1) + last + 2 * heads
    patches = spec.vision_tokens * len(schedule)
    kernel = spec.temporal_kernel * spec.spatial_kernel**2
    encoder = 2.0 * patches * width * (3 * spec.patch_size**2 + kernel * width * spec.encoder_depth + width)
    return Floor(
        prefills=len(schedule),
        steps=len(passes) - len(schedule),
        positions=length,
        encoder=encoder,
        linear=linear,
        attention=attention,
        trimmed=trimmed,
        weights=layers * (attention_weights + mlp_weights) + heads,
        cache=2 * layers * spec.num_heads * spec.head_dim,
    )


def encoder_weights(spec: ModelSpec) -> int:
    """Parameters of the encoder, biases and norms aside."""
    kernel = spec.temporal_kernel * spec.spatial_kernel**2
    width = spec.hidden_size
    return width * (3 * spec.patch_size**2 + kernel * width * spec.encoder_depth + width)
