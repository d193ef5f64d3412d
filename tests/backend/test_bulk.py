"""``autogaze bulk`` on a local Ray with two workers: the same numbers as in process, whatever dies on the way."""

from __future__ import annotations

import json
import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from autogaze_client import GazeClient, InvalidInputError
from autogaze_client._cli import main
from autogaze_client.video import VideoReader

from backend.bulk_helpers import (
    RATIO,
    expected_rows,
    footer,
    processes,
    results,
    start_command,
    wait_for,
    write_folder,
)

ray = pytest.importorskip("ray", reason="needs the extra bulk: pip install 'autogaze-triton[bulk]'")
pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra bulk", exc_type=ImportError)

# Ray Data's own, about its settings.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")

WORKER, DECODER = "GazeWorker", "autogaze-decode"


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """Room for two workers of one thread and one decoder each."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=200 * 2**20,
    )
    yield
    ray.shutdown()


def bulk_job(
    videos: Path, out: Path, bundle: Any, *, settings: dict[str, Any] | None = None, **changes: Any
) -> Any:
    from autogaze_backend.bulk import BulkJob, BulkSettings

    chosen = BulkSettings(**{"gazing_ratio": RATIO, **(settings or {})})
    return BulkJob(videos, out, bundle("release"), chosen, actors=2, threads=1, **changes)


@pytest.fixture(scope="module")
def first_run(videos, local_ray, bundle, tmp_path_factory) -> tuple[Path, Any]:
    from autogaze_backend.bulk import run_bulk

    out = tmp_path_factory.mktemp("bulk") / "out"
    return out, run_bulk(bulk_job(videos, out, bundle))


def test_every_video_has_the_models_own_numbers(first_run, videos, model):
    out, summary = first_run
    found = results(out)
    assert sorted(found) == ["0.mp4", "1.mp4", "2.mp4", "3.mp4", "below/4.mkv"]
    for name, columns in found.items():
        expected = expected_rows(model("release"), videos / name, gazing_ratio=RATIO)
        assert {column: columns[column] for column in expected} == expected
        assert set(columns["video"]) == {name}
    assert (summary.videos, summary.done, summary.unreadable, summary.failed) == (7, 5, 2, 0)
    assert (summary.actors, summary.exit_status, summary.interrupted) == (2, 3, 0)
    assert summary.frames == 33 + 16 + 20 + 37 + 18
    assert summary.tokens == sum(len(columns["token"]) for columns in found.values())
    assert json.loads((out / "summary.json").read_text()) == summary.to_dict()


def test_the_servers_numbers_are_the_same(first_run, videos, server):
    out, _ = first_run
    with GazeClient(server.url) as client:
        served = client.gaze(videos / "3.mp4", gazing_ratio=RATIO)
    columns = results(out)["3.mp4"]
    names = ("frame", "x", "y", "width", "height", "confidence", "scale")
    table = np.stack([np.array(columns[name], np.float32) for name in names], axis=1)
    assert np.array_equal(table, served.fixations)
    assert served.timestamps is not None
    assert columns["timestamp"] == served.timestamps[columns["frame"]].tolist()


def test_a_footer_says_what_a_result_was_made_with(first_run, videos, bundle):
    from autogaze_backend import Bundle

    out, _ = first_run
    made = footer(out / "gaze" / "3.mp4.parquet")
    found = (videos / "3.mp4").stat()
    assert made["video"] == {
        "name": "3.mp4", "size": found.st_size, "mtime_ns": found.st_mtime_ns, "fps": [25, 1],
        "frames": 37, "tokens": made["video"]["tokens"], "height": 48, "width": 96,
    }  # fmt: skip
    assert made["settings"]["gazing_ratio"] == RATIO
    assert made["checkpoint"]["sha256"] == Bundle.load(bundle("release")).manifest["checkpoint"]["sha256"]


def test_what_cannot_be_read_is_recorded(first_run):
    out, _ = first_run
    errors = {row["video"]: row for row in pq.read_table(out / "errors.parquet").to_pylist()}
    assert sorted(errors) == ["cut.mp4", "none.mp4"]
    assert {row["status"] for row in errors.values()} == {"unreadable"}
    assert "not a video in a supported container" in errors["none.mp4"]["message"]


def test_a_second_run_does_only_what_is_missing_or_has_changed(first_run, videos, bundle):
    from autogaze_backend.bulk import run_bulk

    out, _ = first_run
    before = results(out)
    kept = {name: (out / "gaze" / f"{name}.parquet").stat().st_mtime_ns for name in ("0.mp4", "3.mp4")}
    (out / "gaze" / "1.mp4.parquet").unlink()
    os.utime(videos / "2.mp4", ns=(1, 1))
    damaged = out / "gaze" / "below" / "4.mkv.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    # Where and how it is computed may change from run to run: here videos share batches.
    summary = run_bulk(bulk_job(videos, out, bundle, videos_at_once=2))
    assert (summary.done_before, summary.done, summary.unreadable) == (2, 3, 2)
    assert results(out) == before
    assert kept == {name: (out / "gaze" / f"{name}.parquet").stat().st_mtime_ns for name in kept}
    # Nothing is left to do, so nothing is started.
    again = run_bulk(bulk_job(videos, out, bundle))
    assert (again.done_before, again.done, again.unreadable, again.actors) == (5, 0, 2, 0)


def test_other_settings_or_another_checkpoint_are_refused(first_run, videos, bundle):
    from autogaze_backend.bulk import run_bulk

    out, _ = first_run
    before = results(out)
    with pytest.raises(InvalidInputError, match=r"window_frames is 16 there, 8 now.*another output folder"):
        run_bulk(bulk_job(videos, out, bundle, settings={"window_frames": 8}))
    other = bulk_job(videos, out, lambda layout: bundle("single"))
    with pytest.raises(InvalidInputError, match=r"checkpoint\.sha256"):
        run_bulk(other)
    assert results(out) == before


def test_streams_remember_and_batches_change_nothing(videos, local_ray, bundle, model, tmp_path):
    """Two videos share each step here, and the stop ends their frames at different tokens."""
    from autogaze_backend.bulk import run_bulk

    settings = {"stream": True, "horizon": 3, "window_frames": 5, "frame_stride": 2, "max_frames": 12,
                "gazing_ratio": 0.1, "task_loss_requirement": 0.9}  # fmt: skip
    job = bulk_job(videos, tmp_path / "out", bundle, settings=settings, videos_at_once=2, patterns=("*.mp4",))
    summary = run_bulk(job)
    assert (summary.done, summary.unreadable) == (4, 2)
    for name, columns in results(tmp_path / "out").items():
        expected: list[tuple] = []
        with model("release").open_stream(horizon=3) as stream:
            for index, frame in enumerate(VideoReader(videos / name, frame_stride=2, max_frames=12)):
                step = stream.step(
                    model("release").preprocess(frame[None]), gazing_ratio=0.1, task_loss_requirement=0.9
                )
                chosen = ~step.if_padded_gazing[0]
                stopped = bool(step.stop_probabilities[0, 0])
                expected += [
                    (2 * index, int(token), float(confidence), stopped)
                    for token, confidence in zip(
                        step.gazing_pos[0, chosen], step.confidences[0, chosen], strict=True
                    )
                ]
        names = ("frame", "token", "confidence", "stop")
        assert list(zip(*(columns[name] for name in names), strict=True)) == expected


def test_a_video_that_kills_its_process_is_given_up(videos, bundle, tmp_path):
    """The parts that dead processes left are what counts; the others of its batch are not blamed."""
    from autogaze_backend import Bundle
    from autogaze_backend.bulk.inputs import find_videos
    from autogaze_backend.bulk.output import OutputFolder, ResultWriter
    from autogaze_backend.bulk.report import Status
    from autogaze_backend.bulk.settings import RunIdentity
    from autogaze_backend.bulk.worker import GazeWorker

    job = bulk_job(videos, tmp_path / "out", bundle, attempts=3)
    identity = RunIdentity.of(job.settings, Bundle.load(job.bundle))
    folder = OutputFolder(job.out)
    _, (video,) = find_videos(videos / "0.mp4")
    with folder.locked(identity):
        abandoned = [ResultWriter(folder, video) for _ in range(3)]
        (outcome,) = GazeWorker(job, videos, identity, 1).gaze([video])
        assert len(abandoned) == folder.attempts(video.name) == 3
    assert outcome.status is Status.FAILED
    assert "died 3 times" in outcome.message


def test_a_worker_refuses_a_machine_that_sees_other_files(videos, bundle, tmp_path):
    from autogaze_backend import Bundle
    from autogaze_backend.bulk.output import OutputFolder
    from autogaze_backend.bulk.settings import RunIdentity
    from autogaze_backend.bulk.worker import GazeWorker
    from autogaze_client import CheckpointError

    job = bulk_job(videos, tmp_path / "out", bundle)
    identity = RunIdentity.of(job.settings, Bundle.load(job.bundle))
    with pytest.raises(InvalidInputError, match="every machine of the cluster must see"):
        GazeWorker(job, videos, identity, 1)
    with OutputFolder(job.out).locked(identity):
        elsewhere = bulk_job(videos, tmp_path / "out", lambda layout: bundle("single"))
        with pytest.raises(CheckpointError, match="another bundle on this machine"):
            GazeWorker(elsewhere, videos, identity, 1)


@pytest.mark.parametrize("moment", ["start", "work"])
def test_a_worker_that_breaks_ends_the_run_with_its_reason(
    videos, local_ray, bundle, tmp_path, monkeypatch, moment
):
    from autogaze_backend.bulk import running
    from autogaze_backend.bulk.worker import GazeWorker
    from autogaze_client import CheckpointError, InferenceError

    class Broken(GazeWorker):
        def __init__(self, *arguments: Any) -> None:
            if moment == "start":
                raise CheckpointError("another bundle is here")
            super().__init__(*arguments)

        def gaze(self, videos: Any) -> Any:
            raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(running, "GazeWorker", Broken)
    reason = {"start": "another bundle is here", "work": "a fault of ours"}[moment]
    with pytest.raises(InferenceError, match=reason):
        running.run_bulk(bulk_job(videos, tmp_path / "out", bundle))
    assert results(tmp_path / "out") == {}
    assert not (tmp_path / "out" / ".parts").exists()


def counting_plan(path: Path, log: Path) -> Any:
    """A plan that notes each frame the decoder makes; of a local class, so that Ray sends it by value."""
    from autogaze_backend.bulk.decoding import DecodePlan

    class Counting(DecodePlan):
        def check(self, frames: int, height: int, width: int) -> None:
            with log.open("a") as file:
                file.write(f"{os.getpid()}\n")

    return Counting(path, 2, 0, None, 1, 10**6, 10**6)


def test_a_decoder_waits_for_the_model_also_after_another_one_died(videos, local_ray, tmp_path):
    from autogaze_backend.bulk.decoding import TaskWindows

    log = tmp_path / "log"
    windows = TaskWindows(counting_plan(videos / "3.mp4", log), attempts=2, timeout=60)
    taken = [next(windows) for _ in range(4)]
    time.sleep(1)

    def made() -> int:
        # The first two calls are about the declared size; opening a reader makes no frame.
        return len(log.read_text().split())

    before = made()
    assert before < 2 * (4 + 3) + 4, "the decoder runs ahead of the model"
    os.kill(int(log.read_text().split()[-1]), signal.SIGKILL)
    taken += [next(windows) for _ in range(4)]
    time.sleep(1)
    assert windows.deaths == 1
    assert made() - before < 2 * (8 + 3) + 4, "the second decoder runs ahead of the model"
    taken += list(windows)
    expected = list(VideoReader(videos / "3.mp4").timed_windows(2))
    assert len(taken) == len(expected) == 19
    for window, (timestamps, frames) in zip(taken, expected, strict=True):
        assert np.array_equal(window.frames, frames)
        assert np.array_equal(window.timestamps, timestamps)
    assert taken[0].fps == (25, 1)


def test_a_decoder_that_is_not_needed_any_more_ends(videos, local_ray, tmp_path):
    from autogaze_backend.bulk.decoding import TaskWindows

    log = tmp_path / "log"
    windows = TaskWindows(counting_plan(videos / "3.mp4", log), attempts=2, timeout=60)
    next(windows)
    process = Path("/proc", log.read_text().split()[-1], "cmdline")
    assert DECODER in process.read_text()
    windows.close()
    del windows
    wait_for(lambda: not process.exists() or DECODER not in process.read_text(), 20, "end of the decoder")


def test_a_decoder_that_dies_too_often_or_takes_too_long(videos, local_ray, tmp_path):
    from autogaze_backend.bulk.decoding import DecodePlan, TaskWindows
    from autogaze_client import DeadlineExceededError, InferenceError, VideoDecodeError

    class Deadly(DecodePlan):
        def check(self, frames: int, height: int, width: int) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

    class Slow(DecodePlan):
        def check(self, frames: int, height: int, width: int) -> None:
            time.sleep(30)

    numbers = (videos / "3.mp4", 2, 0, None, 1, 10**6, 10**6)
    deadly = TaskWindows(Deadly(*numbers), attempts=2, timeout=60)
    with pytest.raises(InferenceError, match="died 2 times"):
        next(deadly)
    slow = TaskWindows(Slow(*numbers), attempts=2, timeout=0.5)
    with pytest.raises(DeadlineExceededError, match=r"longer than 0\.5 s"):
        next(slow)
    slow.close()
    large = TaskWindows(DecodePlan(videos / "3.mp4", 2, 0, None, 1, 10**6, 20_000), attempts=2, timeout=60)
    with pytest.raises(InvalidInputError, match=r"above the limit of 20000 \(--max-window-bytes\)"):
        next(large)
    missing = TaskWindows(DecodePlan(videos / "no.mp4", 2, 0, None, 1, 10**6, 10**6), attempts=2, timeout=60)
    with pytest.raises(VideoDecodeError, match=r"no\.mp4"):
        next(missing)


def test_killed_processes_change_nothing(first_run, videos, bundle, tmp_path):
    """The command with two workers: one of them is killed in the middle of a video, then a decoder."""
    mark, out = uuid.uuid4().hex, tmp_path / "out"
    run = start_command(videos, out, bundle, mark)
    try:
        # Both workers hold a video, so whichever is killed loses one.
        wait_for(lambda: len(list((out / ".parts").glob("*"))) == 2, 60, "two videos in hand")
        victim = processes(mark, WORKER)[0]
        os.kill(victim, signal.SIGKILL)
        decoder = wait_for(lambda: processes(mark, DECODER), 60, "decoder")[0]
        os.kill(decoder, signal.SIGKILL)
        printed, log = run.communicate(timeout=120)
    finally:
        run.kill()
    assert run.returncode == 3, log
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["done"], summary["unreadable"], summary["failed"]) == (5, 2, 0), log
    assert summary["interrupted"] >= 1
    assert results(out) == results(first_run[0])
    assert not (out / ".parts").exists()
    for line in ("videos                7", "unreadable            2"):
        assert line in printed
    wait_for(lambda: not processes(mark, "ray"), 30, "end of Ray's processes")


def test_the_command_reports_and_goes_on(first_run, videos, bundle, capsys):
    out, _ = first_run
    arguments = ["--bundle", str(bundle("release")), "--gazing-ratio", str(RATIO)]
    assert main(["bulk", str(videos), str(out), *arguments]) == 3
    printed = capsys.readouterr().out
    assert "done before           5" in printed
    assert "errors.parquet: videos without a result" in printed
    assert main(["bulk", str(videos), str(out), "--pattern", "?.mp4", *arguments]) == 0
    assert main(["bulk", str(videos), str(out), *arguments, "--max-gaze-tokens", "5"]) == 1
    assert "max_gaze_tokens is null there, 5 now" in capsys.readouterr().err
