"""Selection and stop of one group, and the bookkeeping of its row, in one kernel."""

from __future__ import annotations

import triton
import triton.language as tl

from autogaze_backend.torch_engine.chaining import after_all_but_previous, after_previous_too


@triton.jit(do_not_specialize=["capacity"])
def select_kernel(
    slots,
    plan,
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
    calls,
    told,
    capacity,
    padding,
    STRIDE: tl.constexpr,
    VOCABULARY: tl.constexpr,
    VOCABULARY_PAD: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    RECORD: tl.constexpr,
    WINDOW: tl.constexpr,
    CALLS: tl.constexpr,
    CALL_MASK: tl.constexpr,
    FIRST: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """Chooses a row's group greedily (pipeline §5); a row that rests is left alone.

    A pick masks the heads after it; a predicted loss at or below the requirement takes its slot, except the
    frame's very first; the frame ends with a stop, an empty budget, or fewer free ids than heads.

    ``told`` lies in the host's memory (``flag_ring.py``).
    """
    row = tl.program_id(0)
    rows = tl.load(active)
    # Beyond the call's rows lies whatever the host left there.
    slot = tl.load(slots + row, mask=row < rows, other=0).to(tl.int64)
    v = tl.arange(0, VOCABULARY_PAD)
    k = tl.arange(0, GROUP_PAD)
    head = tl.arange(0, GROUP_PAD)[:, None]
    after_all_but_previous(CHAINED)
    # Everything that is read is asked for at once: a branch in between would wait for what it depends on.
    alive = tl.load(running + slot, cache_modifier=".cg")
    window = tl.load(frame + slot, cache_modifier=".cg")
    if FIRST:
        alive = 1
        taken = (v == padding) | (v >= VOCABULARY)
        window += 1
        planned = plan + (slot * WINDOW + window) * 3
        left = tl.load(planned, mask=row < rows, cache_modifier=".cg")
        limit = tl.load(planned + 1, mask=row < rows, cache_modifier=".cg").to(tl.float32, bitcast=True)
    else:
        taken = (
            tl.load(chosen + slot * VOCABULARY + v, mask=v < VOCABULARY, other=1, cache_modifier=".cg") != 0
        )
        left = tl.load(budget + slot, cache_modifier=".cg")
        limit = tl.load(requirement + slot, cache_modifier=".cg")
    at = tl.load(cursor + slot, cache_modifier=".cg")
    stored = tl.load(length + slot, cache_modifier=".cg")
    reached = tl.load(position + slot, cache_modifier=".cg")
    number = tl.load(calls, cache_modifier=".cg")
    telling = told + (number & (CALLS - 1)) * capacity + row
    number = (number & CALL_MASK) * 2
    after_previous_too(CHAINED)
    if row < rows:
        scores = tl.load(
            logits + row * STRIDE + head * VOCABULARY + v[None, :],
            mask=(head < GROUP) & (v < VOCABULARY)[None, :],
            other=float("-inf"),
        )
        losses = tl.load(logits + row * STRIDE + GROUP * VOCABULARY + k, mask=k < GROUP, other=0.0)
        if alive != 0:
            if FIRST:
                tl.store(chosen + slot * VOCABULARY + v, taken.to(tl.int8), mask=v < VOCABULARY)
            free = VOCABULARY_PAD - tl.sum(taken.to(tl.int32), 0)
            scores = tl.where(taken[None, :], float("-inf"), scores)
            # Each head's choice as if it were the first to choose.
            top, ids = tl.max(scores, 1, return_indices=True)
            shares = tl.sum(tl.exp(scores - top[:, None]), 1)
            # Whether ``shares`` is without the ids that earlier heads took.
            settled = k >= GROUP
            same = (ids[:, None] == ids[None, :]) & (k[:, None] < k[None, :]) & (k < GROUP)[None, :]
            if tl.sum(tl.sum(same.to(tl.int32), 1), 0) > 0:
                # Heads agree, which is rare: the later one chooses again, in order.
                for later in tl.static_range(1, GROUP):
                    wish = tl.sum(tl.where(k == later, ids, 0), 0)
                    if tl.sum(((k < later) & (ids == wish)).to(tl.int32), 0) > 0:
                        line = tl.load(
                            logits + row * STRIDE + later * VOCABULARY + v,
                            mask=v < VOCABULARY,
                            other=float("-inf"),
                        )
                        gone = ((k < later)[:, None] & (ids[:, None] == v[None, :])).to(tl.int32)
                        line = tl.where(taken | (tl.max(gone, 0) != 0), float("-inf"), line)
                        best, pick = tl.max(line, 0, return_indices=True)
                        ids = tl.where(k == later, pick, ids)
                        shares = tl.where(k == later, tl.sum(tl.exp(line - best), 0), shares)
                        settled = settled | (k == later)
            # A head's own choice is the largest share of what is left, so what is taken away cancels little.
            earlier = tl.load(
                logits + row * STRIDE + head * VOCABULARY + ids[None, :],
                mask=(k[None, :] < head) & (head < GROUP),
                other=float("-inf"),
            )
            removed = tl.sum(tl.exp(earlier - top[:, None]), 1)
            confidence = 1.0 / tl.where(settled, shares, shares - removed)
            # A row of numbers that are none must not choose beyond the vocabulary, where another row's choices lie.
            ids = tl.minimum(ids, VOCABULARY - 1)
            # After the store of the whole, where the frame is new.
            tl.debug_barrier()
            tl.store(chosen + slot * VOCABULARY + ids, tl.full((GROUP_PAD,), 1, tl.int8), mask=k < GROUP)
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
            tl.store(budget + slot, left - size)
            tl.store(length + slot, stored + fed)
            moved = reached + fed
            tl.store(position + slot, moved)
            if FIRST:
                tl.store(anchor + slot, moved)
            more = (finished == 0).to(tl.int32)
            tl.store(running + slot, more)
            tl.store(flags + row, more)
            tl.store(telling, number + more)
            answer = row * (3 * GROUP + 1)
            tl.store(call + answer + k, ids, mask=slots_of_group)
            tl.store(call_float + answer + GROUP + k, confidence, mask=slots_of_group)
            tl.store(call_float + answer + 2 * GROUP + k, losses, mask=slots_of_group)
            tl.store(call + answer + 3 * GROUP, size)
        else:
            tl.store(flags + row, 0)
            tl.store(telling, number)
