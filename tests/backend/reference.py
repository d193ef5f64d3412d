"""The decoder and its stream rule in float64, written plainly from the specification (pipeline §4–5).

Independent of the package but for the names of its bound weights: attention is a dense product over explicit
lists of keys, one token at a time where that is clearer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Weights = dict[str, np.ndarray]


@dataclass
class CachedToken:
    """A token's keys and values, one a layer, and the frame it belongs to."""

    frame: int
    keys: list[np.ndarray]
    values: list[np.ndarray]


class Float64Stream:
    """One stream, from any point on: positions and the group left over are given."""

    def __init__(
        self, spec, weights: Weights, horizon: int, *, frame: int = 0, position: int = 0, pending=()
    ) -> None:
        self.spec = spec
        self.w = {name: weight.astype(np.float64) for name, weight in weights.items()}
        self.horizon = horizon
        self.frame, self.position = frame, position
        self.pending = list(pending)
        self.cache: list[CachedToken] = []

    def run_frame(self, vision: np.ndarray, budget: int, requirement: float, forced=None):
        """Generates a frame's groups; with ``forced`` (ids, padding as N) feeds those instead of its own choices.

        Returns:
            ids (padding as N) and predicted losses.
        """
        spec, size = self.spec, self.spec.group_size
        frames = sorted({token.frame for token in self.cache})
        while len(frames) >= self.horizon:
            oldest = frames.pop(0)
            self.cache = [token for token in self.cache if token.frame != oldest]
        owner = self.frame - 1 if self.frame - 1 in frames else self.frame
        embed = self.w["decoder.embed"]
        tokens = [embed[i] for i in self.pending] + list(vision.astype(np.float64))
        owners = [owner] * len(self.pending) + [self.frame] * len(vision)
        positions = self.position + np.arange(len(tokens))
        self.position += len(tokens)
        reused = np.arange(self.position - size, self.position)
        ids: list[int] = []
        losses: list[float] = []
        taken: set[int] = set()
        hidden = self._feed(np.array(tokens), positions, owners)
        while True:
            group, predictions, stopped = self._choose(hidden, taken, budget - len(ids), requirement, not ids)
            taken |= {token for token in group if token != spec.tokens_per_frame}
            start = len(ids)
            ids += group
            losses += predictions
            fed = group if forced is None else forced[start : start + len(group)]
            ended = stopped or len(group) < size or len(ids) >= budget
            if forced is not None:
                ended = start + len(group) >= len(forced)
                taken = {token for token in forced[: start + len(group)] if token != spec.tokens_per_frame}
            if ended:
                self.pending = [token for token in fed if token != spec.tokens_per_frame]
                break
            hidden = self._feed(embed[fed], reused, [self.frame] * size)
            self.position += size
        self.frame += 1
        return ids, losses

    def _choose(self, hidden, taken: set[int], budget: int, requirement: float, first: bool):
        spec = self.spec
        logits = (hidden @ self.w["decoder.lm_head"]).reshape(spec.group_size, spec.vocab_size)
        losses = hidden @ self.w["decoder.task_loss_head"]
        taken = taken | {spec.tokens_per_frame}
        group, predictions, stopped = [], [], False
        for head in range(min(spec.group_size, budget, spec.vocab_size - len(taken))):
            scores = logits[head].copy()
            scores[list(taken)] = -np.inf
            choice = int(scores.argmax())
            taken.add(choice)
            stop = losses[head] <= requirement and not (first and head == 0)
            stopped |= bool(stop)
            group.append(spec.tokens_per_frame if stop else choice)
            predictions.append(float(losses[head]))
        return group, predictions, stopped

    def _feed(self, x: np.ndarray, positions: np.ndarray, owners: list[int]) -> np.ndarray:
        """Runs tokens through the layers, appends them to the cache; returns the last one's final state."""
        spec, w = self.spec, self.w
        added = [CachedToken(owner, [], []) for owner in owners]
        cos, sin = self._angles(positions)
        for layer in range(spec.num_layers):
            name = f"decoder.layers.{layer}."
            q, k, v = np.split(self._norm(x, w[name + "input_norm"]) @ w[name + "qkv"], 3, axis=1)
            q, k, v = (t.reshape(len(x), spec.num_heads, spec.head_dim) for t in (q, k, v))
            q, k = self._rotate(q, cos, sin), self._rotate(k, cos, sin)
            keys = np.stack([token.keys[layer] for token in self.cache] + list(k))
            values = np.stack([token.values[layer] for token in self.cache] + list(v))
            for token, key, value in zip(added, k, v, strict=True):
                token.keys.append(key)
                token.values.append(value)
            past = len(self.cache)
            scores = np.einsum("qhd,khd->hqk", q, keys) / np.sqrt(spec.head_dim)
            future = np.arange(len(keys)) > past + np.arange(len(x))[:, None]
            scores = np.where(future, -np.inf, scores)
            scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
            scores /= scores.sum(axis=-1, keepdims=True)
            mixed = np.einsum("hqk,khd->qhd", scores, values).reshape(len(x), -1)
            x = x + mixed @ w[name + "out"]
            gate, up = np.split(self._norm(x, w[name + "post_norm"]) @ w[name + "gate_up"], 2, axis=1)
            x = x + (gate / (1 + np.exp(-gate)) * up) @ w[name + "down"]
        self.cache += added
        return self._norm(x[-1], w["decoder.norm"])

    def _norm(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + self.spec.rms_norm_eps) * weight

    def _angles(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        spec, scaling = self.spec, self.spec.rope_scaling
        half = spec.head_dim // 2
        frequencies = []
        for index in range(half):
            frequency = spec.rope_theta ** (-2 * index / spec.head_dim)
            wavelength = 2 * np.pi / frequency
            ratio = scaling.original_max_position_embeddings / wavelength
            if ratio < scaling.low_freq_factor:
                frequency /= scaling.factor
            elif ratio <= scaling.high_freq_factor:
                weight = (ratio - scaling.low_freq_factor) / (
                    scaling.high_freq_factor - scaling.low_freq_factor
                )
                frequency = (1 - weight) * frequency / scaling.factor + weight * frequency
            frequencies.append(np.float64(np.float32(frequency)))
        angles = positions[:, None, None] * np.array(frequencies)
        return np.cos(angles), np.sin(angles)

    @staticmethod
    def _rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
        first, second = np.split(x, 2, axis=-1)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
