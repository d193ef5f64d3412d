"""The parts of a bulk run that need no Ray: what is found, how machines are divided, and what is written."""

from __future__ import annotations

import json
import os
import shlex
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from autogaze_backend.bulk.inputs import VideoFile, find_videos
from autogaze_backend.bulk.job import BulkJob, Node, gpus_here, plan_on_cluster, plan_on_this_machine
from autogaze_backend.bulk.settings import BulkSettings, RunIdentity, differences
from autogaze_client import AutoGazeInferenceMode, InvalidInputError, NotFoundError
from autogaze_client._cli import build_parser, main
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
FULL = AutoGazeInferenceMode.TILED_FULL_RESOLUTION


def job(tmp_path, **changes):
    return BulkJob(source=tmp_path, out=tmp_path / "out", bundle=tmp_path / "bundle", **changes)


def test_videos_are_found_by_suffix_and_by_pattern(tmp_path):
    for name in ("b.MP4", "a/c.mkv", "a/notes.txt", ".hidden/d.mp4", ".e.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    root, videos = find_videos(tmp_path)
    assert root == tmp_path
    assert [(video.name, video.size) for video in videos] == [("a/c.mkv", 5), ("b.MP4", 5)]
    assert [video.name for video in find_videos(tmp_path, ["*.txt"])[1]] == ["a/notes.txt"]
    assert [video.name for video in find_videos(tmp_path, ["a/*", "*.MP4"])[1]] == [
        "a/c.mkv",
        "a/notes.txt",
        "b.MP4",
    ]
    root, videos = find_videos(tmp_path / "b.MP4")
    assert (root, [video.name for video in videos]) == (tmp_path, ["b.MP4"])
    with pytest.raises(InvalidInputError, match="no files that match"):
        find_videos(tmp_path, ["*.avi"])
    with pytest.raises(NotFoundError, match="does not exist"):
        find_videos(tmp_path / "missing")


def test_a_name_that_is_no_text_is_known(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.mp4")).touch()
    (tmp_path / "café.mp4").touch()
    assert sorted(video.is_text for video in find_videos(tmp_path)[1]) == [False, True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gazing_ratio": 1.5}, "gazing_ratio"),
        ({"task_loss_requirement": -1.0}, "task_loss_requirement"),
        ({"max_gaze_tokens": 0}, "max_gaze_tokens"),
        ({"window_frames": 0}, "window_frames is 0"),
        ({"start_frame": -1}, "start_frame is -1"),
        ({"stream": True, "mode": FULL}, "runs in the resize mode"),
        ({"mode": "sideways"}, "no inference mode"),
    ],
)
def test_settings_that_break_a_rule(changes, message):
    with pytest.raises(InvalidInputError, match=message):
        BulkSettings(**changes)


def test_an_identity_changes_with_every_setting_but_not_with_the_engine(bundle):
    from autogaze_backend import Bundle

    loaded = Bundle.load(bundle("release"))
    base = RunIdentity.of(BulkSettings(), loaded)
    changed = [
        BulkSettings(gazing_ratio=0.5),
        BulkSettings(task_loss_requirement=0.7),
        BulkSettings(max_gaze_tokens=10),
        BulkSettings(window_frames=8),
        BulkSettings(stream=True),
        BulkSettings(stream=True, horizon=8),
        BulkSettings(start_frame=1),
        BulkSettings(max_frames=5),
        BulkSettings(frame_stride=2),
        BulkSettings(mode=FULL),
    ]
    digests = {RunIdentity.of(settings, loaded).digest for settings in changed}
    assert len(digests | {base.digest}) == len(changed) + 1
    # A horizon decides nothing without a stream.
    assert RunIdentity.of(BulkSettings(horizon=8), loaded).digest == base.digest
    other_engine = replace(loaded, engine="tensorrt")
    assert RunIdentity.of(BulkSettings(), other_engine).digest == base.digest
    half = replace(loaded, precision="fast")
    assert differences(base.to_dict(), RunIdentity.of(BulkSettings(), half).to_dict()) == [
        'checkpoint.precision is "exact" there, "fast" now'
    ]


def test_a_plan_of_this_machine(tmp_path):
    plan = plan_on_this_machine(job(tmp_path), cores=16, gpus=0, videos=100)
    assert (plan.actors, plan.threads, plan.cpus, plan.gpus) == (4, 4, 5, 0)
    assert plan_on_this_machine(job(tmp_path), cores=16, gpus=0, videos=2).actors == 2
    assert plan_on_this_machine(job(tmp_path), cores=2, gpus=0, videos=9).threads == 2
    asked = plan_on_this_machine(job(tmp_path, actors=2, threads=3), cores=2, gpus=0, videos=9)
    assert (asked.actors, asked.threads) == (2, 3)
    gpus = plan_on_this_machine(job(tmp_path, device="cuda", videos_at_once=8), cores=16, gpus=2, videos=9)
    assert (gpus.actors, gpus.gpus, gpus.cpus) == (2, 1, 12)
    with pytest.raises(InvalidInputError, match="this machine has 0"):
        plan_on_this_machine(job(tmp_path, device="cuda"), cores=16, gpus=0, videos=9)


@pytest.mark.parametrize(
    ("named", "count"), [("0,1", 2), ("GPU-4ab3", 1), ("", 0), ("-1", 0), ("NoDevFiles", 0), (None, 3)]
)
def test_the_gpus_of_a_machine(tmp_path, monkeypatch, named, count):
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert gpus_here(tmp_path) == count


def test_a_plan_of_a_cluster(tmp_path):
    nodes = [Node(16, 2), Node(4, 0), Node(64, 1)]
    assert plan_on_cluster(job(tmp_path), nodes, 100).actors == 3 + 0 + 12
    cuda = job(tmp_path, device="cuda", videos_at_once=8)
    assert (
        plan_on_cluster(cuda, nodes, 100).actors == 1 + 0 + 1
    )  # The first has CPUs for one of its two GPUs.
    with pytest.raises(InvalidInputError, match=r"takes 12 CPUs .* and 1 GPUs"):
        plan_on_cluster(cuda, [Node(8, 1)], 100)
    waiting = plan_on_cluster(replace(cuda, actors=3), [Node(8, 1)], 100)
    assert (waiting.actors, waiting.fitting) == (3, 0)


@given(
    st.lists(st.tuples(st.integers(0, 64), st.integers(0, 8)), max_size=6),
    st.sampled_from(["cpu", "cuda"]),
    st.integers(1, 8),
    st.integers(1, 8),
)
def test_a_cluster_is_never_promised_more_than_it_has(machines, device, threads, at_once):
    asked = job(Path("/videos"), device=device, threads=threads, videos_at_once=at_once)
    nodes = [Node(*machine) for machine in machines]
    try:
        plan = plan_on_cluster(asked, nodes, 10**6)
    except InvalidInputError:
        assert not any(n.cpus >= threads + at_once and (device == "cpu" or n.gpus >= 1) for n in nodes)
        return
    assert plan.actors * plan.cpus <= sum(node.cpus for node in nodes)
    assert plan.actors * plan.gpus <= sum(node.gpus for node in nodes)
    assert plan.actors >= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bundle", "b", "--gazing-ratio", "2"], "gazing_ratio"),
        (["--bundle", "b", "--actors", "0"], "actors is 0"),
        (["--bundle", "b", "--decode-timeout", "nan"], "decode_timeout is nan"),
        ([], "no bundle is given"),
    ],
)
def test_the_command_refuses_before_it_starts_anything(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("AUTOGAZE_BUNDLE", raising=False)
    assert main(["bulk", str(tmp_path), str(tmp_path / "out"), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_package_names_the_extra(tmp_path):
    import subprocess
    import sys

    script = (
        "import sys; sys.modules['ray'] = None\n"
        "from autogaze_client._cli import main\n"
        f"sys.exit(main(['bulk', {str(tmp_path)!r}, 'out', '--bundle', 'b']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "pip install 'autogaze-triton[bulk]'" in done.stderr


def test_a_bar_tells_of_videos_and_of_frames_on_the_way(monkeypatch):
    import io

    from autogaze_backend.bulk import progress
    from rich.console import Console

    monkeypatch.setattr(progress, "_POLL_SECONDS", 0.01)
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    asked = []

    def frames() -> int:
        asked.append(True)
        return 16 * len(asked)

    with progress.run_progress(True, 7, frames, console=console) as advance:
        advance(2)
        deadline = time.monotonic() + 30
        while len(asked) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    shown = screen.getvalue()
    assert "2/7" in shown
    assert f"{16 * len(asked)} frames" in shown
    with progress.run_progress(False, 7, frames, console=console) as advance:
        advance(1)
    assert screen.getvalue() == shown
    tally = progress.Tally()
    tally.add(16)
    tally.add(3)
    assert tally.total() == 19


class TestWithArrow:
    """What is written."""

    @pytest.fixture(autouse=True)
    def _arrow(self):
        pytest.importorskip("pyarrow", reason="needs the extra bulk", exc_type=ImportError)

    def table(self, result, timestamps, **changes):
        from autogaze_backend.bulk.table import window_table

        settings = {"video": "a.mp4", "input_size": 224, "first_frame": 0, "frame_stride": 1, **changes}
        return window_table(result, timestamps, **settings).to_pydict()

    def test_rows_are_the_results_tokens_in_order(self, model):
        frames = np.random.default_rng(0).integers(0, 256, (3, 60, 90, 3)).astype(np.uint8)
        result = model("release").gaze(frames, gazing_ratio=0.05)
        times = np.array([1.0, 1.5, 2.5])
        table = self.table(result, times, first_frame=32, frame_stride=2)
        generated = result.generated
        n = generated.num_vision_tokens_each_frame
        frame = generated.frame_of_slot
        assert table["frame"] == (32 + 2 * frame).tolist()
        assert table["timestamp"] == times[frame].tolist()
        assert table["token"] == (generated.gazing_pos[0] - n * frame).tolist()
        assert table["confidence"] == generated.confidences[0].tolist()
        assert table["task_loss"] == generated.task_loss_predictions[0].tolist()
        assert table["video"] == ["a.mp4"] * len(frame)
        assert table["tile"] == [0] * len(frame)
        for index, name in enumerate(("x", "y", "width", "height"), start=1):
            assert table[name] == result.fixations[:, index].tolist()
        assert table["scale"] == result.fixations[:, 6].astype(int).tolist()
        for x, y, scale, row, column in zip(
            *(table[name] for name in ("x", "y", "scale", "row", "column")), strict=True
        ):
            assert (np.float32((column + 0.5) / scale), np.float32((row + 0.5) / scale)) == (x, y)

    def test_a_frame_that_stops_at_once_still_has_a_row(self, model):
        frames = np.random.default_rng(0).integers(0, 256, (2, 60, 90, 3)).astype(np.uint8)
        table = self.table(model("release").gaze(frames, task_loss_requirement=1e6), np.array([0.0, 0.04]))
        assert table["frame"] == [0, 1]
        assert table["stop"] == [True, True]
        table = self.table(model("release").gaze(frames, max_gaze_tokens_each_frame=1), np.array([0.0, 0.04]))
        assert table["frame"] == [0, 1]
        assert table["stop"] == [False, False]

    @pytest.mark.parametrize("mode", [FULL, AutoGazeInferenceMode.TILED_RESIZE_TO_GRID])
    def test_tiles_keep_their_tokens_and_find_their_place(self, model, mode):
        frames = np.random.default_rng(1).integers(0, 256, (2, 230, 300, 3)).astype(np.uint8)
        result = model("release").gaze(frames, mode=mode, gazing_ratio=0.1)
        table = self.table(result, np.array([0.0, 0.04]))
        assert len(table["frame"]) == int(result.tokens_per_frame.sum())
        assert list(zip(table["frame"], table["tile"], strict=True)) == sorted(
            zip(table["frame"], table["tile"], strict=True)
        )
        names = ("frame", "x", "y", "width", "height", "confidence", "scale")
        rows = [row for row in zip(*(table[name] for name in names), strict=True) if row[1] is not None]
        assert sorted(rows) == sorted(tuple(row) for row in result.fixations.tolist())
        # Of 2×2 tiles the lower ones hold 6 rows of pixels: most of their cells are padding.
        assert (len(rows) < len(table["frame"])) == (mode is FULL)

    def folder(self, tmp_path, bundle, settings=None):
        from autogaze_backend import Bundle
        from autogaze_backend.bulk.output import OutputFolder

        identity = RunIdentity.of(settings or BulkSettings(), Bundle.load(bundle("release")))
        return OutputFolder(tmp_path / "out"), identity

    def test_a_folder_is_one_runs_and_of_one_setting(self, tmp_path, bundle):
        folder, identity = self.folder(tmp_path, bundle)
        _, other = self.folder(tmp_path, bundle, BulkSettings(gazing_ratio=0.5))
        with folder.locked(identity):
            with pytest.raises(InvalidInputError, match="another run writes"), folder.locked(identity):
                pass
            (folder.parts / "half").touch()
        assert not folder.parts.exists()
        with folder.locked(identity):
            pass
        with (
            pytest.raises(InvalidInputError, match=r"gazing_ratio is null there, 0\.5 now"),
            folder.locked(other),
        ):
            pass
        folder.settings.write_text("{")
        with pytest.raises(InvalidInputError, match="no valid JSON"), folder.locked(identity):
            pass

    def test_a_folder_of_other_things_is_left_alone(self, tmp_path, bundle):
        folder, identity = self.folder(tmp_path, bundle)
        folder.path.mkdir()
        (folder.path / "thesis.tex").touch()
        with pytest.raises(InvalidInputError, match=r"holds 'thesis\.tex'"), folder.locked(identity):
            pass
        assert [path.name for path in folder.path.iterdir()] == ["thesis.tex"]

    def test_a_result_appears_whole_and_for_its_file_alone(self, tmp_path, bundle):
        from autogaze_backend.bulk.output import ResultWriter
        from autogaze_backend.bulk.table import SCHEMA

        folder, identity = self.folder(tmp_path, bundle)
        _, other = self.folder(tmp_path, bundle, BulkSettings(gazing_ratio=0.5))
        video = VideoFile("a/b.mp4", 5, 7)
        with folder.locked(identity):
            with ResultWriter(folder, video) as writer:
                writer.write(SCHEMA.empty_table())
                assert folder.attempts(video.name) == 1
                assert folder.finished(video, identity) is None
                writer.finish(identity, {"frames": 0, "tokens": 0, "fps": [25, 1]})
            assert folder.attempts(video.name) == 0
            facts = folder.finished(video, identity)
            assert facts is not None
            assert facts["video"] == {
                "name": "a/b.mp4", "size": 5, "mtime_ns": 7, "frames": 0, "tokens": 0, "fps": [25, 1],
            }  # fmt: skip
            assert facts["checkpoint"]["sha256"] == identity.checkpoint["sha256"]
            assert facts["settings"]["window_frames"] == 16
            assert folder.finished(replace(video, size=6), identity) is None
            assert folder.finished(replace(video, mtime_ns=8), identity) is None
            assert folder.finished(video, other) is None
            whole = folder.result(video.name).read_bytes()
            folder.result(video.name).write_bytes(whole[: len(whole) // 2])
            assert folder.finished(video, identity) is None

    def test_a_writer_that_fails_leaves_nothing(self, tmp_path, bundle):
        from autogaze_backend.bulk.output import ResultWriter

        folder, identity = self.folder(tmp_path, bundle)
        with folder.locked(identity):
            with pytest.raises(ZeroDivisionError), ResultWriter(folder, VideoFile("a.mp4", 1, 1)):
                raise ZeroDivisionError
            assert list(folder.parts.iterdir()) == []
            assert list(folder.gaze.iterdir()) == []

    def test_the_report_survives_names_and_is_read_back(self, tmp_path, bundle):
        from autogaze_backend.bulk.report import Outcome, Status, read_errors, write_errors

        folder, identity = self.folder(tmp_path, bundle)
        with folder.locked(identity):
            assert read_errors(folder) == []
            bad = Outcome(VideoFile("ü.mp4", 1, 2), Status.UNREADABLE, "damaged")
            odd = Outcome(VideoFile(os.fsdecode(b"\xe9.mp4"), 1, 2), Status.FAILED, "odd")
            write_errors(folder, [bad, odd])
            found = read_errors(folder)
            assert bad in found
            assert [outcome.video.name for outcome in found if outcome != bad] == ["\\xe9.mp4"]
            folder.errors.write_bytes(b"PAR1 not really")
            with pytest.raises(InvalidInputError, match="cannot be read"):
                read_errors(folder)

    def test_the_exit_status_tells_of_missing_results(self):
        from autogaze_backend.bulk.report import BulkSummary

        whole = BulkSummary(3, 1, 2, 0, 0, 0, 32, 400, 2.0, 1, 4, "cpu")
        assert (whole.exit_status, whole.frames_per_second) == (0, 16.0)
        assert replace(whole, done=1, unreadable=1).exit_status == 3
        assert replace(whole, done=1, failed=1).exit_status == 3
        assert json.loads(json.dumps(whole.to_dict()))["exit_status"] == 0


class TestManifest:
    """deploy/ray: not run here, but it says what the command takes and what the lock holds."""

    @pytest.fixture
    def cluster(self):
        yaml = pytest.importorskip("yaml", reason="needs PyYAML, which the extra server brings")
        return yaml.safe_load((ROOT / "deploy" / "ray" / "rayjob.yaml").read_text())

    def arguments(self, cluster):
        words = shlex.split(cluster["spec"]["entrypoint"])
        return build_parser("bulk").parse_args(words[1 : words.index("||")])

    def test_its_command_is_one(self, cluster):
        from autogaze_backend._commands.bulk import job_of

        chosen = job_of(self.arguments(cluster))
        assert (chosen.device, chosen.address) == ("cuda", "auto")
        assert cluster["spec"]["entrypoint"].strip().endswith("|| [ $? -eq 3 ]")

    def test_its_workers_hold_one_actor_each(self, cluster):
        from autogaze_backend._commands.bulk import job_of

        group = cluster["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        nodes = [Node(float(limits["cpu"]), float(limits["nvidia.com/gpu"]))] * group["replicas"]
        plan = plan_on_cluster(job_of(self.arguments(cluster)), nodes, 100)
        assert (plan.actors, plan.fitting) == (group["replicas"], group["replicas"])

    def test_its_ray_is_the_locked_one(self, cluster):
        lock = (ROOT / "requirements" / "bulk-py3.12.txt").read_text()
        assert f"ray=={cluster['spec']['rayClusterSpec']['rayVersion']} " in lock
        assert "requirements/bulk-py3.12.txt" in (ROOT / "deploy" / "ray" / "Dockerfile").read_text()
