"""Attention over a row's paged cache, with the keys split among programs where rows are few."""

from __future__ import annotations

import triton
import triton.language as tl

from autogaze_backend.torch_engine.chaining import after_all_but_previous, after_previous_too


@triton.jit
def _attend(
    q,
    q_low,
    peak,
    weights,
    mixed,
    mixed_low,
    cache,
    plane,
    page,
    head,
    j,
    low,
    high,
    SCALE: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    PAGE: tl.constexpr,
    PAGES: tl.constexpr,
    PARTS: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Some pages of keys join the running softmax (base 2); parts as in ``halves``.

    ``page`` is the number of the page, or with several the number of each key's.
    """
    p = tl.arange(0, PAGES * PAGE)
    d = tl.arange(0, HEAD)
    base = (page.to(tl.int64) * HEADS + head) * (PAGE * HEAD)
    if PAGES == 1:
        keys = cache + base + p[None, :] * HEAD + d[:, None]
        values = cache + PARTS * plane + base + p[:, None] * HEAD + d[None, :]
    else:
        base += (p % PAGE) * HEAD
        keys = cache + base[None, :] + d[:, None]
        values = cache + PARTS * plane + base[:, None] + d[None, :]
    k = tl.load(keys)
    scores = tl.dot(q, k)
    if PARTS == 2:
        small = tl.dot(q, tl.load(keys + plane))
        small = tl.dot(q_low, k, small)
        scores += small * (1.0 / 2048.0)
    scores = scores * SCALE
    if MASKED:
        seen = (j[None, :] >= low) & (j[None, :] <= high[:, None])
        scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        safe = tl.where(higher == float("-inf"), 0.0, higher)
    else:
        higher = tl.maximum(peak, tl.max(scores, 1))
        safe = higher
    shares = tl.exp2(scores - safe[:, None])
    fade = tl.exp2(peak - safe)
    v = tl.load(values)
    shares_high = shares.to(tl.float16)
    mixed = tl.dot(shares_high, v, mixed * fade[:, None])
    if PARTS == 2:
        shares_low = ((shares - shares_high.to(tl.float32)) * 2048.0).to(tl.float16)
        mixed_low = tl.dot(shares_high, tl.load(values + plane), mixed_low * fade[:, None])
        mixed_low = tl.dot(shares_low, v, mixed_low)
    return higher, weights * fade + tl.sum(shares, 1), mixed, mixed_low


@triton.jit(do_not_specialize=["capacity", "per_row"])
def attention_kernel(
    query,
    cache,
    plane,
    slots,
    active,
    count,
    first,
    length,
    table,
    mixed_out,
    partial,
    stats,
    arrived,
    capacity,
    per_row,
    LAST: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    PAGE: tl.constexpr,
    MAX_PAGES: tl.constexpr,
    SPLITS: tl.constexpr,
    ONE_LOOP: tl.constexpr,
    QUERIES: tl.constexpr,
    PAGES: tl.constexpr,
    SCALE: tl.constexpr,
    PARTS: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """Query i of a row sees the cached tokens from ``first`` on up to its own place.

    With ``LAST`` only a row's read-out token asks, and its result lies at the row's place. Of the programs that
    share a row's keys, the one that is done last joins what all of them found; each of them takes ``PAGES`` pages
    at once, and at least these.
    """
    rows = tl.load(active)
    # A cache of more than 32 GiB has planes whose double is beyond 32 bits.
    plane = tl.cast(plane, tl.int64)
    row = tl.program_id(1) // HEADS
    head = tl.program_id(1) % HEADS
    split = tl.program_id(2)
    s0 = tl.program_id(0) * QUERIES
    after_all_but_previous(CHAINED)
    tokens = tl.load(count + row, cache_modifier=".cg")
    # Beyond the call's rows lies whatever the host left there.
    slot = tl.load(slots + row, mask=row < rows, other=0).to(tl.int64)
    begin = tl.load(first + slot, cache_modifier=".cg")
    stored = tl.load(length + slot, cache_modifier=".cg")
    after_previous_too(CHAINED)
    if row < rows:
        if LAST:
            s0 = tokens - 1
        if (s0 >= 0) & (s0 < tokens):
            page0 = begin // PAGE
            low = (begin - page0 * PAGE).to(tl.int32)
            # The place of the row's first new token, counted from the start of its first page.
            new = (stored - page0 * PAGE).to(tl.int32)
            s = s0 + tl.arange(0, QUERIES)
            high = new + s
            pages = (new + tl.minimum(s0 + QUERIES, tokens) + PAGE - 1) // PAGE
            # A short cache has fewer parts than programs.
            share = tl.maximum((pages + SPLITS - 1) // SPLITS, PAGES)
            parts = (pages + share - 1) // share
            from_page = split * share
            to_page = tl.minimum(from_page + share, pages)
            whole = (new + s0 + 1) // PAGE
            d = tl.arange(0, HEAD)
            real = s < tokens
            asked = tl.load(
                query + ((row * HEADS + head) * per_row + s)[:, None] * HEAD + d[None, :],
                mask=real[:, None],
                other=0.0,
            )
            q = asked.to(tl.float16)
            q_low = ((asked.to(tl.float32) - q.to(tl.float32)) * 2048.0).to(tl.float16)
            peak = tl.full((QUERIES,), float("-inf"), tl.float32)
            weights = tl.zeros((QUERIES,), tl.float32)
            mixed = tl.zeros((QUERIES, HEAD), tl.float32)
            mixed_low = tl.zeros((QUERIES, HEAD), tl.float32)
            places = tl.arange(0, PAGE)
            row_table = table + slot * MAX_PAGES
            if ONE_LOOP:
                # Few pages a program: one loop whose loads overlap is worth more than masks that are spared.
                p = tl.arange(0, PAGES * PAGE)
                for index in range(from_page, to_page, PAGES):
                    if PAGES == 1:
                        page = tl.load(row_table + (page0 + index) % MAX_PAGES)
                        j = index * PAGE + p
                    else:
                        own = index + p // PAGE < to_page
                        page = tl.load(row_table + (page0 + index + p // PAGE) % MAX_PAGES, mask=own, other=0)
                        # What is past this program's pages comes after every query.
                        j = tl.where(own, index * PAGE + p, 1 << 30)
                    peak, weights, mixed, mixed_low = _attend(
                        q, q_low, peak, weights, mixed, mixed_low, cache, plane, page, head, j, low, high,
                        SCALE, HEADS, HEAD, PAGE, PAGES, PARTS, True,
                    )  # fmt: skip
            else:
                # Only the first page and those that reach into the new tokens need a mask.
                if (from_page == 0) & (to_page > 0):
                    page = tl.load(row_table + page0 % MAX_PAGES)
                    peak, weights, mixed, mixed_low = _attend(
                        q, q_low, peak, weights, mixed, mixed_low, cache, plane, page, head, places, low, high,
                        SCALE, HEADS, HEAD, PAGE, 1, PARTS, True,
                    )  # fmt: skip
                for index in range(tl.maximum(from_page, 1), tl.minimum(to_page, whole)):
                    page = tl.load(row_table + (page0 + index) % MAX_PAGES)
                    peak, weights, mixed, mixed_low = _attend(
                        q, q_low, peak, weights, mixed, mixed_low, cache, plane, page, head, places, low, high,
                        SCALE, HEADS, HEAD, PAGE, 1, PARTS, False,
                    )  # fmt: skip
                for index in range(tl.maximum(tl.maximum(from_page, whole), 1), to_page):
                    page = tl.load(row_table + (page0 + index) % MAX_PAGES)
                    peak, weights, mixed, mixed_low = _attend(
                        q, q_low, peak, weights, mixed, mixed_low, cache, plane, page, head, index * PAGE + places,
                        low, high, SCALE, HEADS, HEAD, PAGE, 1, PARTS, True,
                    )  # fmt: skip
            if PARTS == 2:
                mixed += mixed_low * (1.0 / 2048.0)
            if LAST:
                r = row + tl.zeros((QUERIES,), tl.int32)
                real = s == s0
            else:
                r = row * per_row + s
            at = r[:, None] * (HEADS * HEAD) + head * HEAD + d[None, :]
            if parts == 1:
                if split == 0:
                    shared = mixed / tl.where(weights == 0.0, 1.0, weights)[:, None]
                    tl.store(mixed_out + at, shared.to(mixed_out.dtype.element_ty), mask=real[:, None])
            elif split < parts:  # noqa: SIM102 - what follows is left out when compiled
                if SPLITS > 1:
                    tl.store(partial + split * capacity * (HEADS * HEAD) + at, mixed, mask=real[:, None])
                    pair = ((split * capacity + r) * HEADS + head) * 2
                    tl.store(stats + pair, peak, mask=real)
                    tl.store(stats + pair + 1, weights, mask=real)
                    # All of this program's stores come before its arrival.
                    tl.debug_barrier()
                    ticket = arrived + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
                    if tl.atomic_add(ticket, 1, sem="acq_rel", scope="gpu") == parts - 1:
                        tl.store(ticket, 0)
                        n = tl.arange(0, SPLITS)
                        pairs = ((n[None, :] * capacity + r[:, None]) * HEADS + head) * 2
                        found_by = real[:, None] & (n < parts)[None, :]
                        peaks = tl.load(
                            stats + pairs, mask=found_by, other=float("-inf"), cache_modifier=".cg"
                        )
                        shares_of = tl.load(stats + pairs + 1, mask=found_by, other=0.0, cache_modifier=".cg")
                        top = tl.max(peaks, 1)
                        top = tl.where(top == float("-inf"), 0.0, top)
                        fades = tl.exp2(peaks - top[:, None])
                        whole_weight = tl.sum(shares_of * fades, 1)
                        found = tl.load(
                            partial + (n[:, None, None] * capacity * (HEADS * HEAD) + at[None, :, :]),
                            mask=real[None, :, None] & (n < parts)[:, None, None],
                            other=0.0,
                            cache_modifier=".cg",
                        )
                        total = tl.sum(found * tl.trans(fades)[:, :, None], 0)
                        shared = total / tl.where(whole_weight == 0.0, 1.0, whole_weight)[:, None]
                        tl.store(mixed_out + at, shared.to(mixed_out.dtype.element_ty), mask=real[:, None])
