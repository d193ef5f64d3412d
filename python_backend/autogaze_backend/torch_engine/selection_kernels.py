"""Selection and stop of one group, and the bookkeeping of its row, in one kernel."""

from __future__ import annotations

import triton
import triton.language as tl

from autogaze_backend.torch_engine.halves import after_previous


@triton.jit
def select_kernel(
    slots,
    request,
    active,
    logits,
    count,
    group,
    position,
    anchor,
    length,
    budget,
    requirement,
    running,
    chosen,
    frame,
    cursor,
    frame_counts,
    record,
    record_float,
    call,
    call_float,
    flags,
    padding,
    STRIDE: tl.constexpr,
    VOCABULARY: tl.constexpr,
    VOCABULARY_PAD: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    RECORD: tl.constexpr,
    WINDOW: tl.constexpr,
    FIRST: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """Chooses a row's group greedily (pipeline §5); a row that rests is left alone.

    A pick masks the heads after it; a predicted loss at or below the requirement takes its slot, except the
    frame's very first; the frame ends with a stop, an empty budget, or fewer free ids than heads.
    """
    row = tl.program_id(0)
    rows = tl.load(active)
    after_previous(CHAINED)
    if row < rows:
        slot = tl.load(slots + row).to(tl.int64)
        alive = tl.load(running + slot)
        if FIRST:
            alive = 1
        if alive != 0:
            v = tl.arange(0, VOCABULARY_PAD)
            k = tl.arange(0, GROUP_PAD)
            if FIRST:
                taken = (v == padding) | (v >= VOCABULARY)
                window = tl.load(request + row * 4)
                left = tl.load(request + row * 4 + 1)
                limit = tl.load(request + row * 4 + 2).to(tl.float32, bitcast=True)
            else:
                taken = tl.load(chosen + slot * VOCABULARY + v, mask=v < VOCABULARY, other=1) != 0
                window = tl.load(frame + slot)
                left = tl.load(budget + slot)
                limit = tl.load(requirement + slot)
            free = VOCABULARY_PAD - tl.sum(taken.to(tl.int32), 0)
            ids = tl.zeros((GROUP_PAD,), tl.int32)
            confidence = tl.zeros((GROUP_PAD,), tl.float32)
            # Unrolled: what is loaded does not wait for what was chosen.
            for head in tl.static_range(GROUP):
                scores = tl.load(
                    logits + row * STRIDE + head * VOCABULARY + v, mask=v < VOCABULARY, other=float("-inf")
                )
                scores = tl.where(taken, float("-inf"), scores)
                top, pick = tl.max(scores, 0, return_indices=True)
                shares = tl.sum(tl.exp(scores - top), 0)
                taken = taken | (v == pick)
                ids = tl.where(k == head, pick, ids)
                confidence = tl.where(k == head, 1.0 / shares, confidence)
            losses = tl.load(logits + row * STRIDE + GROUP * VOCABULARY + k, mask=k < GROUP, other=0.0)
            size = tl.minimum(tl.minimum(left, free), GROUP)
            exists = k < size
            stopped = exists & (losses <= limit)
            if FIRST:
                stopped = stopped & (k > 0)
            valid = exists & (stopped == 0)
            finished = (tl.sum(stopped.to(tl.int32), 0) > 0) | (size >= left) | (size < GROUP)
            ids = tl.where(valid, ids, padding)
            confidence = tl.where(valid, confidence, 0.0)
            slots_of_group = k < GROUP

            at = tl.load(cursor + slot)
            if FIRST:
                at = tl.where(window == 0, 0, at)
                before = 0
                fed = tl.load(count + row)
                tl.store(frame + slot, window)
                tl.store(requirement + slot, limit)
            else:
                before = tl.load(frame_counts + slot * WINDOW + window)
                fed = GROUP
            target = slot * (3 * RECORD) + at + k
            tl.store(record + target, ids, mask=exists)
            tl.store(record_float + target + RECORD, confidence, mask=exists)
            tl.store(record_float + target + 2 * RECORD, losses, mask=exists)
            tl.store(cursor + slot, at + size)
            tl.store(frame_counts + slot * WINDOW + window, before + size)
            tl.store(group + slot * GROUP + k, ids, mask=slots_of_group)
            tl.store(chosen + slot * VOCABULARY + v, taken.to(tl.int8), mask=v < VOCABULARY)
            tl.store(budget + slot, left - size)
            tl.store(length + slot, tl.load(length + slot) + fed)
            moved = tl.load(position + slot) + fed
            tl.store(position + slot, moved)
            if FIRST:
                tl.store(anchor + slot, moved)
            more = (finished == 0).to(tl.int32)
            tl.store(running + slot, more)
            tl.store(flags + row, more)
            answer = row * (3 * GROUP + 1)
            tl.store(call + answer + k, ids, mask=slots_of_group)
            tl.store(call_float + answer + GROUP + k, confidence, mask=slots_of_group)
            tl.store(call_float + answer + 2 * GROUP + k, losses, mask=slots_of_group)
            tl.store(call + answer + 3 * GROUP, size)
        else:
            tl.store(flags + row, 0)
