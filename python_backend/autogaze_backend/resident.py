"""Rows on an engine that keeps them on its device: the host says what to run next and reads the end of a window.

The host enqueues the calls of a frame ahead of the device. Where a frame may stop early, the host learns of it one
call later, and the call between leaves the row alone.
"""

from __future__ import annotations

import heapq
import logging
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray

from autogaze_backend.engine import Engine, Floats, Integers
from autogaze_backend.generation import FrameLimits, FrameTokens, RowTokens
from autogaze_backend.scheduling import RowJob, RowScheduler
from autogaze_backend.spec import ModelSpec

if TYPE_CHECKING:
    from autogaze_backend.torch_engine.preprocessing import DevicePreprocessing

_LOG = logging.getLogger("autogaze")

# Calls that are enqueued at once while the batch stays as it is.
BURST = 4

# Rows up to which frames are opened ahead, too: a call of more takes the device so long that the host is in no hurry.
_BURST_ROWS = 16


class FlagsTicket(Protocol):
    """Which rows of a call go on; on its way from the device."""

    def ready(self) -> bool:
        """Whether ``wait`` returns at once."""

    def wait(self) -> NDArray[np.bool_]:
        """Bool ``[B]``: whether each row's frame goes on."""


class RecordTicket(Protocol):
    """The choices of some slots; on their way from the device."""

    def ready(self) -> bool:
        """Whether ``wait`` returns at once."""

    def wait(self) -> tuple[Integers, Integers, Floats, Floats]:
        """Entries of each frame ``[B, window]``; ids, confidences and losses ``[B, entries]``, frames in order."""


class ResidentEngine(Engine, Protocol):
    """An engine whose rows, once given their frames, need the host only to say what is next.

    Calls are enqueued and take effect in order. A row is told apart by its slot, as everywhere.
    """

    @property
    def window(self) -> int:
        """Frames that a slot holds at once, encoded and chosen."""

    @property
    def max_rows(self) -> int:
        """Rows of one call."""

    @property
    def preprocessing(self) -> DevicePreprocessing:
        """Makes model input of bytes on the engine's device."""

    def can_hold(self, positions: int) -> bool:
        """Whether a slot of so many cached positions can be opened now."""

    def reserve(self, slot: int, end: int) -> None:
        """Sees to it that the slot can hold tokens up to position ``end`` of its stream's cache."""

    def forget(self, slot: int, first: int) -> None:
        """Takes back the memory of the slot's positions before ``first``, which have left its cache."""

    def encode_frames(
        self, slots: Integers, frames: Sequence[Any], fresh: NDArray[np.bool_], plans: NDArray[np.int32]
    ) -> None:
        """Encodes a window of frames of each slot, T the same; ``fresh`` starts a stream.

        Frames are model input ``[T, 3, side, side]``, or bytes ``[T, H, W, 3 or 4]`` for the resize mode.
        ``plans``, int32 ``[B, T, 3]``, are what ``frame_plans`` makes.
        """

    def open_rows(self, slots: Integers, calls: int = 1) -> None:
        """Opens the next frame of each slot's window, ``calls`` times: then each but the last has one group."""

    def continue_rows(self, slots: Integers, calls: int = 1) -> None:
        """Feeds the last group of each slot and chooses the next, ``calls`` times; ended frames are left alone."""

    def run_frames(
        self,
        slots: Integers,
        frames: Sequence[Any],
        fresh: NDArray[np.bool_],
        limits: Sequence[FrameLimits],
        dropped: Integers,
    ) -> list[FrameTokens]:
        """One frame ``[1, 3, side, side]`` of each of several streams, from encoding to tokens."""

    def flags(self, rows: int) -> FlagsTicket:
        """Of the last call."""

    def collect(self, slots: Integers, entries: int) -> RecordTicket:
        """The first ``entries`` entries of each slot's window."""


def is_resident(engine: Engine) -> TypeGuard[ResidentEngine]:
    """Whether the engine keeps rows on its device."""
    return hasattr(engine, "encode_frames")


def scheduler_for(engine: Engine) -> RowScheduler | ResidentScheduler:
    """What runs rows on this engine."""
    return ResidentScheduler(engine) if is_resident(engine) else RowScheduler(engine)


def groups_of(spec: ModelSpec, budget: Any) -> Any:
    """Groups of a frame that does not stop early; of each frame where ``budget`` is an array."""
    return -(-budget // spec.group_size)


def frame_positions(spec: ModelSpec, budget: int) -> int:
    """The most positions that a frame adds to the cache, the group left over from the one before included."""
    return spec.vision_tokens + int(groups_of(spec, budget)) * spec.group_size


def frame_plans(
    budgets: Any, requirements: Sequence[float | None] | Floats, dropped: Any = 0
) -> NDArray[np.int32]:
    """What an engine must know of frames, int32 ``[B, T, 3]``.

    Args:
        budgets: integers ``[B, T]``, tokens of each frame at most.
        requirements: the loss that stops a row's frames; None or NaN for none.
        dropped: positions that leave each row's cache before its first frame, one number or ``[B]``.

    Returns:
        Of each frame its budget, the bits of the requirement (NaN never stops), and the positions to drop.
    """
    budgets = np.asarray(budgets)
    plans = np.zeros((*budgets.shape, 3), np.int32)
    plans[:, :, 0] = budgets
    # None becomes NaN.
    plans[:, :, 1] = np.array(requirements, np.float32).view(np.int32)[:, None]
    plans[:, 0, 2] = dropped
    return plans


# Runs are told apart by identity: to compare what they hold would cost as much as a call.
@dataclass(eq=False)
class _Run:
    """A row that has a slot.

    Attributes:
        budgets: int64 ``[T]``, tokens of each frame at most.
        groups: of each frame that does not stop early.
        frame: frames that are finished.
        left: groups that the open frame may still take; 0 when none is open.
        fresh: whether nothing has been encoded yet.
        stops: whether a frame may end before its budget does.
        entries: bound of the entries that the window has filled.
        collected: frames whose tokens were asked for.
    """

    job: RowJob
    slot: int
    frames: int
    budgets: Integers
    groups: list[int]
    requirement: float | None
    stops: bool
    frame: int = 0
    left: int = 0
    fresh: bool = True
    entries: int = 0
    collected: int = 0
    windows: list[tuple[Integers, Integers, Floats, Floats]] = field(default_factory=list)
    told: int = 0
    ended: bool = False


class ResidentScheduler:
    """Runs rows on a resident engine; used as ``RowScheduler`` is. Not thread-safe."""

    def __init__(self, engine: ResidentEngine) -> None:
        self._engine = engine
        self._spec = engine.spec
        self._waiting: list[tuple[int, int, RowJob]] = []
        self._runs: list[_Run] = []
        self._flags: deque[tuple[FlagsTicket, list[tuple[_Run, int]]]] = deque()
        self._records: deque[tuple[RecordTicket, list[tuple[_Run, int]]]] = deque()
        self._clock = 0
        self._order = 0
        self._open = 0

    def __len__(self) -> int:
        """Rows that are not done."""
        return self._open

    def add(self, job: RowJob) -> None:
        """Takes a row in; it joins at the next ``tick`` that has room for it."""
        self._order += 1
        job.order, job.due = self._order, self._clock + max(job.work, job.row.frames)
        heapq.heappush(self._waiting, (job.due, job.order, job))
        self._open += 1

    def tick(self) -> None:
        """Enqueues one call for the rows that are due first, and answers rows whose tokens have come."""
        self._read_flags()
        self._read_records()
        self._admit()
        batch = self._due()
        opening = [run for run in batch if not run.left]
        running = [run for run in batch if run.left]
        try:
            opening = self._encode(self._still_wanted(opening))
            if opening:
                self._open_frames(opening, burst=not running)
            if running:
                self._continue(running, burst=not opening)
        except Exception as error:
            # What the device holds now is unknown for every row of the call.
            _LOG.exception("a call of the engine failed")
            for run in batch:
                if not run.ended:
                    self._end(run, error)
            return
        self._collect(batch)
        if not opening and not running:
            self._wait()

    def abandon(self) -> None:
        """Gives up all rows, without telling anyone, and frees what they hold."""
        for run in self._runs:
            self._engine.close_slot(run.slot)
        self._runs, self._waiting, self._open = [], [], 0
        self._flags.clear()
        self._records.clear()

    def fail(self, error: Exception) -> None:
        """Ends all rows with ``error``."""
        jobs = [job for _, _, job in self._waiting]
        jobs += [run.job for run in self._runs]
        jobs += [run.job for _, parts in self._records for run, _ in parts if run not in self._runs]
        self.abandon()
        for job in jobs:
            try:
                job.done(error)
            except Exception:
                _LOG.exception("a row's end could not be told")

    def _admit(self) -> None:
        """Gives slots to waiting rows, the first due first, as long as there is room."""
        engine = self._engine
        while self._waiting and (engine.max_slots is None or len(self._runs) < engine.max_slots):
            job = self._waiting[0][2]
            budgets = job.row.budget.max_tokens
            groups = groups_of(self._spec, budgets).tolist()
            positions = len(groups) * self._spec.vision_tokens + sum(groups) * self._spec.group_size
            try:
                if not engine.can_hold(positions) and self._runs:
                    return
                slot = engine.open_slot()
                try:
                    engine.reserve(slot, positions)
                except Exception:
                    engine.close_slot(slot)
                    raise
            except Exception as error:
                heapq.heappop(self._waiting)
                self._open -= 1
                job.done(error)
                continue
            heapq.heappop(self._waiting)
            requirement = job.row.budget.requirement
            self._runs.append(
                _Run(
                    job,
                    slot,
                    job.row.frames,
                    budgets,
                    groups,
                    requirement,
                    requirement is not None,
                )
            )

    def _due(self) -> list[_Run]:
        if len(self._runs) <= self._engine.max_rows:
            return list(self._runs)
        return heapq.nsmallest(
            self._engine.max_rows, self._runs, key=lambda run: (run.job.due, run.job.order)
        )

    def _still_wanted(self, runs: Iterable[_Run]) -> list[_Run]:
        wanted = []
        for run in runs:
            error = run.job.ended(run.frame)
            if error is None:
                wanted.append(run)
            else:
                self._end(run, error)
        return wanted

    def _encode(self, runs: list[_Run]) -> list[_Run]:
        """Sees to it that each row has the encoding of its next frame; the rows that do."""
        window, ready = self._engine.window, []
        groups: dict[int, list[tuple[_Run, Any]]] = {}
        for run in runs:
            if run.frame % window:
                ready.append(run)
                continue
            try:
                frames = run.job.row.window(run.frame, run.frame + window)
            except Exception as error:
                self._end(run, error)
                continue
            groups.setdefault(len(frames), []).append((run, frames))
        for group in groups.values():
            self._engine.encode_frames(
                np.array([run.slot for run, _ in group]),
                [frames for _, frames in group],
                np.array([run.fresh for run, _ in group]),
                frame_plans(
                    [run.budgets[run.frame : run.frame + len(frames)] for run, frames in group],
                    [run.requirement for run, _ in group],
                ),
            )
            for run, _ in group:
                run.fresh, run.entries = False, 0
                ready.append(run)
        return ready

    def _open_frames(self, runs: list[_Run], *, burst: bool) -> None:
        calls = 1
        if burst and len(runs) <= _BURST_ROWS:
            calls = min(BURST, *(self._single_groups(run) for run in runs))
        self._engine.open_rows(np.array([run.slot for run in runs]), calls)
        for run in runs:
            # All frames but the last have one group.
            run.left = run.groups[run.frame + calls - 1] - 1
            run.entries += (calls + run.left) * self._spec.group_size
            # The last of them is counted where calls are, below.
            run.frame += calls - 1
        self._clock += (calls - 1) * len(runs)
        self._after_call(runs)

    def _single_groups(self, run: _Run) -> int:
        """Frames of one group that come next in the row's window, at least 1: nothing is chosen between them."""
        end = min(run.frames, run.frame - run.frame % self._engine.window + self._engine.window)
        count = 0
        while run.frame + count < end and run.groups[run.frame + count] == 1:
            count += 1
        return max(count, 1)

    def _continue(self, runs: list[_Run], *, burst: bool) -> None:
        slots = np.array([run.slot for run in runs])
        calls = 1
        if burst and not any(run.stops for run in runs):
            # Nothing can change before these rows' next steps but another row's arrival, which waits this long.
            calls = min(BURST, min(run.left for run in runs))
        self._engine.continue_rows(slots, calls)
        for run in runs:
            run.left -= calls
        self._after_call(runs)

    def _after_call(self, runs: list[_Run]) -> None:
        if any(run.stops and run.left for run in runs):
            asked = [(run, run.frame) for run in runs]
            self._flags.append((self._engine.flags(len(runs)), asked))
        closed = [run for run in runs if not run.left]
        self._clock += len(closed)
        for run in closed:
            run.frame += 1

    def _read_flags(self) -> None:
        """Learns which frames stopped, up to the last call but one; of the last one if it is there already."""
        while self._flags and (len(self._flags) > 1 or self._flags[0][0].ready()):
            self._take_flags()

    def _take_flags(self) -> None:
        ticket, asked = self._flags.popleft()
        closed = []
        for (run, frame), goes_on in zip(asked, ticket.wait().tolist(), strict=True):
            if not goes_on and not run.ended and run.frame == frame and run.left:
                run.left = 0
                run.frame += 1
                closed.append(run)
        self._clock += len(closed)
        self._collect(closed)

    def _collect(self, runs: Sequence[_Run]) -> None:
        """Asks for the tokens of rows whose window is full or whose last frame is finished."""
        window = self._engine.window
        full = [
            run
            for run in runs
            if not run.ended
            and not run.left
            and run.frame > run.collected
            and (run.frame % window == 0 or run.frame == run.frames)
        ]
        if not full:
            return
        entries = max(run.entries for run in full)
        ticket = self._engine.collect(np.array([run.slot for run in full]), entries)
        self._records.append((ticket, [(run, run.frame - run.collected) for run in full]))
        for run in full:
            run.collected = run.frame
            if run.frame == run.frames:
                # What is enqueued later cannot touch what was collected.
                run.ended = True
                self._runs.remove(run)
                self._engine.close_slot(run.slot)

    def _read_records(self) -> None:
        while self._records and self._records[0][0].ready():
            self._take_record()

    def _take_record(self) -> None:
        ticket, parts = self._records.popleft()
        counts, ids, confidences, losses = ticket.wait()
        for index, (run, frames) in enumerate(parts):
            run.windows.append((counts[index, :frames], ids[index], confidences[index], losses[index]))
            run.told += frames
            if run.told == run.frames:
                self._open -= 1
                run.job.done(RowTokens(run.windows))

    def _wait(self) -> None:
        """Nothing can be enqueued before something comes back."""
        if self._flags:
            self._take_flags()
        elif self._records:
            self._take_record()

    def _end(self, run: _Run, error: Exception) -> None:
        run.ended = True
        self._runs.remove(run)
        self._engine.close_slot(run.slot)
        self._open -= 1
        run.job.done(error)
