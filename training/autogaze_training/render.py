"""Renders training clips on the device: moving cameras, moving and deforming objects, light, noise, cuts."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from autogaze_training.cells import SIDE

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
# Crops that shrink the picture by more than this, at least, take its blurred copy against aliasing. Serving
# shrinks wide frames without a filter, so some clips alias up to twice.
_SHRINK = 1.2
_HELD_OUT = 12


@dataclass(frozen=True)
class Atlas:
    """The source pictures on the device.

    Attributes:
        pictures: uint8 ``[2, N, 3, side, side]``, sharp and blurred by two.
        video: uint8 ``[F, 3, side, side]``, consecutive frames.
    """

    pictures: Tensor
    video: Tensor

    @classmethod
    def load(
        cls, folder: Path, device: torch.device, *, limit: int | None = None, held_out: bool = False
    ) -> Atlas:
        """Reads what ``prepare_data`` wrote.

        Args:
            folder: of the pictures.
            device: where they go.
            limit: keeps the first pictures and frames only.
            held_out: takes the pictures that training never sees (every twelfth) instead of the others.
        """
        index = json.loads((folder / "index.json").read_text())

        def read(entries: list[dict[str, str]]) -> Tensor:
            pictures = [np.array(Image.open(folder / entry["file"])) for entry in entries[:limit]]
            return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).to(device)

        kept = [e for n, e in enumerate(index["images"]) if (n % _HELD_OUT == _HELD_OUT - 1) == held_out]
        sharp = read(kept)
        blurred = torch.cat([_halve(part) for part in sharp.split(16)])
        return cls(torch.stack((sharp, blurred)), read(index["video"]))


class Renderer:
    """Draws clips; the same generator state gives the same clips on the same device."""

    def __init__(self, atlas: Atlas, generator: torch.Generator) -> None:
        self.atlas = atlas
        self.generator = generator
        self.device = atlas.pictures.device

    def clips(self, batch: int, frames: int) -> Tensor:
        """float32 ``[B, T, 3, 224, 224]``, normalised as the processor does."""
        still = self._chance(batch, 0.15)
        time = self._time(batch, frames)
        time = torch.where(still[:, None], 0.0, time)
        clip = self._scene(time)
        real = self._chance(batch, 0.2)
        clip = torch.where(real[:, None, None, None, None], self._real_video(time), clip)
        cut = self._chance(batch, 0.12) & ~still
        if frames > 1:
            other = self._scene(time)
            at = torch.randint(1, frames, (batch,), generator=self.generator, device=self.device)
            after = cut[:, None] & (torch.arange(frames, device=self.device) >= at[:, None])
            clip = torch.where(after[:, :, None, None, None], other, clip)
        clip = self._with_objects(clip, time)
        clip = self._with_light(clip, time)
        clip = self._with_softness(clip)
        clip = self._with_noise(clip)
        mean, std = (torch.tensor(v, device=self.device).view(3, 1, 1) for v in (MEAN, STD))
        return ((clip.clamp(0, 255).round() / 127.5 - 1) - mean) / std

    def _uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=self.generator, device=self.device)

    def _chance(self, batch: int, probability: float) -> Tensor:
        return self._uniform(batch) < probability

    def _some(self, batch: int, probability: float, low: float, high: float) -> Tensor:
        """Uniform values, zero for clips that do not take part."""
        return self._uniform(batch, low=low, high=high) * self._chance(batch, probability)

    def _time(self, batch: int, frames: int) -> Tensor:
        """Each clip's clock: some start late, some stop, some repeat frames."""
        time = torch.arange(frames, device=self.device, dtype=torch.float32).expand(batch, -1)
        start = self._some(batch, 0.15, 0, frames)[:, None]
        stop = torch.where(self._chance(batch, 0.15), self._uniform(batch) * frames, 1e9)[:, None]
        held = (time / 2).floor() * 2
        time = torch.where(self._chance(batch, 0.06)[:, None], held, time)
        return torch.minimum((time - start).clamp(min=0), stop)

    def _speeds(self, batch: int, moving: float, slowest: float, fastest: float) -> Tensor:
        """Velocities ``[B, 2]`` in pixels a frame, log-uniform; zero for clips that do not move."""
        span = math.log(fastest / slowest)
        speed = slowest * (self._uniform(batch) * span).exp() * self._chance(batch, moving)
        angle = self._uniform(batch, high=2 * math.pi)
        return torch.stack((angle.cos(), angle.sin()), -1) * speed[:, None]

    def _scene(self, time: Tensor) -> Tensor:
        """Pictures under a moving camera, 0 to 255."""
        batch = time.shape[0]
        count = self.atlas.pictures.shape[1]
        which = torch.randint(count, (batch,), generator=self.generator, device=self.device)
        zoom = 0.3 + 0.7 * self._uniform(batch)
        centre = self._uniform(batch, 2, low=-1, high=1) * (1 - zoom)[:, None]
        velocity = self._speeds(batch, 0.6, 0.04, 14.0)
        shake = self._some(batch, 0.3, 0.3, 4.0)
        zooming = self._some(batch, 0.3, -0.04, 0.04)
        turning = self._some(batch, 0.25, -0.04, 0.04)
        tilt = self._some(batch, 0.3, -0.3, 0.3)
        phase = self._uniform(batch, 2, high=2 * math.pi)
        pace = self._uniform(batch, 2, low=0.3, high=2.5)
        wobble = torch.sin(phase[:, None] + pace[:, None] * time[..., None]) * shake[:, None, None]
        shift = velocity[:, None] * time[..., None] + wobble
        scale = zoom[:, None] * (zooming[:, None] * time).exp()
        offset = centre[:, None] + shift * (2 / SIDE) * scale[..., None]
        angle = tilt[:, None] + turning[:, None] * time
        mirror = torch.where(self._chance(batch, 0.5), -1.0, 1.0)[:, None]
        theta = torch.stack(
            (
                torch.stack((scale * angle.cos() * mirror, -scale * angle.sin(), offset[..., 0]), -1),
                torch.stack((scale * angle.sin() * mirror, scale * angle.cos(), offset[..., 1]), -1),
            ),
            -2,
        )
        limit = _SHRINK + self._uniform(batch)
        blurred = (zoom * self.atlas.pictures.shape[-1] / SIDE > limit).long()
        return _sample(self.atlas.pictures[blurred, which], theta, self._warp(time))

    def _warp(self, time: Tensor) -> Tensor:
        """Smooth local motion ``[B, T, 224, 224, 2]``, as of grass or cloth; some clips have none."""
        batch, frames = time.shape
        pixels = 0.3 * (self._uniform(batch) * math.log(20.0)).exp() * self._chance(batch, 0.45)
        knots = torch.randn(batch, 4, 5, 5, generator=self.generator, device=self.device)
        pace = 0.03 * (self._uniform(batch) * math.log(30.0)).exp()
        phase = (pace[:, None] * time + self._uniform(batch, 1, high=2 * math.pi))[..., None, None, None]
        field = knots[:, None, :2] * phase.sin() + knots[:, None, 2:] * phase.cos()
        field = functional.interpolate(field.flatten(0, 1), size=SIDE, mode="bicubic", align_corners=False)
        field = field.view(batch, frames, 2, SIDE, SIDE).permute(0, 1, 3, 4, 2)
        return field * (pixels * (2 / SIDE))[:, None, None, None, None]

    def _real_video(self, time: Tensor) -> Tensor:
        """Frames of the training video under a fixed crop, 0 to 255."""
        batch, frames = time.shape
        total = self.atlas.video.shape[0]
        stride = torch.randint(1, 4, (batch,), generator=self.generator, device=self.device)
        first = (self._uniform(batch) * (total - stride * frames).clamp(min=1)).long()
        index = (first[:, None] + time.long() * stride[:, None]).clamp(max=total - 1)
        zoom = 0.5 + 0.5 * self._uniform(batch)
        centre = self._uniform(batch, 2, low=-1, high=1) * (1 - zoom)[:, None]
        mirror = torch.where(self._chance(batch, 0.5), -1.0, 1.0)
        zero = torch.zeros_like(zoom)
        theta = torch.stack(
            (
                torch.stack((zoom * mirror, zero, centre[:, 0]), -1),
                torch.stack((zero, zoom, centre[:, 1]), -1),
            ),
            -2,
        )
        theta = theta[:, None].expand(-1, frames, -1, -1).reshape(batch * frames, 1, 2, 3)
        sharp = self._chance(batch, 0.5)[:, None].expand(-1, frames).flatten()
        out = []
        for part, where, keep in zip(
            index.flatten().split(128), theta.split(128), sharp.split(128), strict=True
        ):
            pictures = self.atlas.video[part]
            pictures = torch.where(keep[:, None, None, None], pictures, _halve(pictures))
            out.append(_sample(pictures, where))
        return torch.cat(out).view(batch, frames, 3, SIDE, SIDE)

    def _with_objects(self, clip: Tensor, time: Tensor) -> Tensor:
        for chance in (0.5, 0.35, 0.25):
            clip = self._with_object(clip, time, chance)
        return clip

    def _with_object(self, clip: Tensor, time: Tensor, chance: float) -> Tensor:
        """Lays one deforming, textured object over the clips that have it."""
        chosen = self._chance(len(clip), chance).nonzero()[:, 0]
        if len(chosen) == 0:
            return clip
        batch, clock = len(chosen), time[chosen]
        count = self.atlas.pictures.shape[1]
        which = torch.randint(count, (batch,), generator=self.generator, device=self.device)
        size = 0.08 * (self._uniform(batch) * math.log(8.0)).exp()
        aspect = (self._uniform(batch, low=-0.6, high=0.6)).exp()
        position = self._uniform(batch, 2, low=-0.9, high=0.9)
        velocity = self._speeds(batch, 0.8, 0.06, 16.0) * (2 / SIDE)
        sway = self._some(batch, 0.4, 0.0, 0.2)
        phase = self._uniform(batch, 3, high=2 * math.pi)
        pace = self._uniform(batch, 3, low=0.1, high=1.5)
        waves = torch.sin(phase[:, None] + pace[:, None] * clock[..., None])
        place = (
            position[:, None] + velocity[:, None] * clock[..., None] + sway[:, None, None] * waves[..., :2]
        )
        spin = self._some(batch, 0.4, -0.15, 0.15)[:, None] * clock + self._uniform(batch, 1, high=6.3)
        growth = (self._some(batch, 0.3, -0.05, 0.05)[:, None] * clock).exp()
        axis = (torch.arange(SIDE, device=self.device) + 0.5) * (2 / SIDE) - 1
        dx = axis - place[..., 0, None, None]
        dy = axis[:, None] - place[..., 1, None, None]
        cos, sin = spin.cos()[..., None, None], spin.sin()[..., None, None]
        scale = (size[:, None] * growth)[..., None, None]
        u = (cos * dx + sin * dy) / (scale * aspect[:, None, None, None])
        v = (cos * dy - sin * dx) / scale
        lobes = torch.randint(2, 6, (batch, 1, 1, 1), generator=self.generator, device=self.device)
        depth = self._some(batch, 0.7, 0.05, 0.4)[:, None, None, None]
        radius = 1 + depth * torch.sin(lobes * torch.atan2(v, u) + 3 * waves[..., 2, None, None])
        power = 2 + 4 * self._some(batch, 0.4, 0.3, 1.0)[:, None, None, None]
        distance = (u.abs().pow(power) + v.abs().pow(power)).pow(1 / power)
        mask = ((radius - distance) * scale * (SIDE / 2)).clamp(-0.5, 0.5) + 0.5
        # Texture keeps to the object: its own coordinates, one texel a pixel or less.
        centre = self._uniform(batch, 2, low=-0.6, high=0.6)[:, None, None, None]
        grid = torch.stack((u * aspect[:, None, None, None], v), -1) * (size * 0.6)[:, None, None, None, None]
        pictures = self.atlas.pictures[0, which].float()
        texture = functional.grid_sample(
            pictures, (grid + centre).flatten(1, 2), padding_mode="reflection", align_corners=False
        )
        texture = texture.view(batch, 3, -1, SIDE, SIDE).transpose(1, 2)
        mixed = torch.lerp(clip[chosen], texture, mask[:, :, None])
        return clip.index_copy(0, chosen, mixed)

    def _with_light(self, clip: Tensor, time: Tensor) -> Tensor:
        """Exposure, contrast and tint; some drift, some jump."""
        batch = len(clip)
        exposure = 1 + self._some(batch, 0.6, -0.35, 0.3)
        drift = self._some(batch, 0.2, -0.06, 0.06)[:, None] * time
        pulse = self._some(batch, 0.08, 0.02, 0.2)[:, None] * torch.sin(time * 1.3)
        tint = 1 + self._some(batch, 0.4, -0.15, 0.15)[:, None] * self._uniform(batch, 3, low=-1)
        gain = (exposure[:, None] * (1 + drift + pulse).clamp(min=0.1))[..., None] * tint[:, None]
        contrast = (1 + self._some(batch, 0.4, -0.5, 0.2))[:, None, None, None, None]
        grey = clip.mean((1, 3, 4), keepdim=True)
        return ((clip - grey) * contrast + grey) * gain[..., None, None]

    def _with_softness(self, clip: Tensor) -> Tensor:
        """Out of focus, or enlarged from a small video."""
        batch, frames = clip.shape[:2]
        small = functional.avg_pool2d(clip.flatten(0, 1), 2)
        soft = functional.interpolate(small, size=SIDE, mode="bilinear", align_corners=False)
        amount = self._some(batch, 0.35, 0.3, 1.0)[:, None, None, None, None]
        return torch.lerp(clip, soft.view(batch, frames, 3, SIDE, SIDE), amount)

    def _with_noise(self, clip: Tensor) -> Tensor:
        sigma = self._some(len(clip), 0.4, 0.5, 8.0)[:, None, None, None, None]
        noise = torch.randn(clip.shape, generator=self.generator, device=self.device)
        return clip + sigma * noise


def _halve(pictures: Tensor) -> Tensor:
    """Pictures without their finest octave, at their own size."""
    small = functional.avg_pool2d(pictures.float(), 2)
    size = pictures.shape[-2:]
    return functional.interpolate(small, size=size, mode="bilinear", align_corners=False).round().byte()


def _sample(pictures: Tensor, theta: Tensor, warp: Tensor | None = None) -> Tensor:
    """Crops ``[B, T, 3, 224, 224]`` of ``[B, 3, side, side]`` under ``theta`` ``[B, T, 2, 3]`` and a warp."""
    batch, frames = theta.shape[:2]
    axis = (torch.arange(SIDE, device=theta.device) + 0.5) * (2 / SIDE) - 1
    base = torch.stack(
        (axis.expand(SIDE, -1), axis[:, None].expand(-1, SIDE), torch.ones(SIDE, SIDE, device=theta.device)),
        -1,
    )
    grid = (theta.flatten(0, 1) @ base.view(-1, 3).T).transpose(1, 2).reshape(batch, frames, SIDE, SIDE, 2)
    if warp is not None:
        grid = grid + warp
    grid = grid.flatten(1, 2)
    sampled = functional.grid_sample(pictures.float(), grid, padding_mode="reflection", align_corners=False)
    return sampled.view(batch, 3, frames, SIDE, SIDE).transpose(1, 2)
