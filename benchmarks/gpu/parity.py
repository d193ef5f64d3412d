"""Are the tokens those of the published model? Every golden, and random clips against it on the same device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from autogaze_client import AutoGazeGenerateOutput
from numpy.typing import NDArray

from benchmarks.gpu.cases import goldens
from benchmarks.gpu.context import WHOLE_CLIP, Context, random_clips

# Clips that run as one batch of ours.
_BATCH = 10
Rows = Iterator[dict[str, Any]]


def run(context: Context) -> Rows:
    """Goldens first: they need no published model."""
    if context.on_gpu:
        _float32_only()
    yield from _goldens(context)
    yield from _random(context)


def _goldens(context: Context) -> Rows:
    for case in goldens():
        if context.cut(f"golden {case.name}"):
            continue
        found = case.run(context.model("exact", case.weights))
        differences = case.differences(found)
        yield {"what": f"golden {case.name}", "clips": len(found.gazing_pos), "differences": differences}


def _random(context: Context) -> Rows:
    """Half of the clips by the published schedule, half with the task-loss stop."""
    sizes = context.sizes
    half = sizes.random_clips // 2
    kinds: list[tuple[str, int, dict[str, Any]]] = [
        ("quick start", sizes.random_clips - half, {"max_gaze_tokens_each_frame": context.schedule()}),
        ("task-loss stop", half, WHOLE_CLIP),
    ]
    for kind, (name, count, knobs) in enumerate(kinds):
        # The second kind gets half of what is left, so that both are tried.
        reserve = context.left() / 2 if kind == 0 else 0.0
        yield _compare(context, name, count, knobs, reserve, first_seed=1000 * (kind + 1))


def _compare(
    context: Context, name: str, count: int, knobs: dict[str, Any], reserve: float, first_seed: int
) -> dict[str, Any]:
    ours, published = context.model("exact"), context.published
    row: dict[str, Any] = {"what": f"random clips, {name}", "clips": 0}
    equal = tokens = batch_equal = 0
    first: dict[str, Any] | None = None
    for start in range(0, count, _BATCH):
        if context.cut(f"{name}: clips from {start}", reserve=reserve):
            break
        videos = random_clips(min(_BATCH, count - start), context.sizes.frames, first_seed + start)
        together = ours.generate(videos, **knobs)
        for index in range(len(videos)):
            alone = ours.generate(videos[index : index + 1], **knobs)
            batch_equal += _row_is_alone(together, index, alone)
            row["clips"] += 1
            tokens += int((~alone.if_padded_gazing).sum())
            if published is None:
                continue
            difference = _first_difference(alone, published(videos[index : index + 1], knobs))
            equal += difference is None
            if difference is not None and first is None:
                first = {"seed": first_seed + start + index, **difference}
    row |= {"tokens": tokens, "equal to their run in a batch": batch_equal}
    if published is not None:
        row |= {"equal to the published model": equal, "first difference": first}
    return row


def _row_is_alone(together: AutoGazeGenerateOutput, index: int, alone: AutoGazeGenerateOutput) -> bool:
    """Whether a row of a batch chose what it chooses alone, padding aside."""
    chosen = together.gazing_pos[index][~together.if_padded_gazing[index]]
    return bool(np.array_equal(chosen, alone.gazing_pos[0][~alone.if_padded_gazing[0]]))


def _first_difference(ours: AutoGazeGenerateOutput, theirs: Any) -> dict[str, Any] | None:
    """Where ours leaves the published model's answer; None where they are equal."""
    found, expected = _chosen(ours.gazing_pos, ours.if_padded_gazing), _published_chosen(theirs)
    if np.array_equal(found, expected):
        return None
    shared = min(len(found), len(expected))
    apart = np.flatnonzero(found[:shared] != expected[:shared])
    place = int(apart[0]) if len(apart) else shared
    return {
        "token": place,
        "ours": int(found[place]) if place < len(found) else None,
        "published": int(expected[place]) if place < len(expected) else None,
        "tokens": [len(found), len(expected)],
    }


def _chosen(positions: NDArray[Any], padded: NDArray[Any]) -> NDArray[Any]:
    return positions[0][~padded[0].astype(bool)]


def _published_chosen(answer: Any) -> NDArray[Any]:
    return _chosen(answer["gazing_pos"].cpu().numpy(), answer["if_padded_gazing"].cpu().numpy())


def _float32_only() -> None:
    """No TF32 anywhere: torch's convolutions use it by default."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
