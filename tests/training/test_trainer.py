"""A run that stops and goes on ends where an uninterrupted one does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch: pip install 'autogaze-triton[train]'")

from autogaze_training.config import TINY  # noqa: E402
from autogaze_training.render import Atlas, Renderer  # noqa: E402
from autogaze_training.train import main  # noqa: E402
from autogaze_training.trainer import Trainer  # noqa: E402
from PIL import Image  # noqa: E402

CONFIG = replace(TINY, lessons=1, passes=1, own_passes=1)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.RandomState(0)
    index: dict[str, list[dict[str, str]]] = {"images": [], "video": []}
    for kind, count in (("images", 13), ("video", 12)):
        for number in range(count):
            content = random.randint(0, 256, (8, 8, 3)).astype(np.uint8)
            name = f"{kind}{number}.png"
            Image.fromarray(content).resize((64, 64)).save(folder / name)
            index[kind].append({"file": name})
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def trainer(pictures: Path) -> Trainer:
    device = torch.device("cpu")
    return Trainer(CONFIG, Atlas.load(pictures, device), device, compiled=False)


def test_resumed_run_equals_uninterrupted(pictures: Path, tmp_path: Path) -> None:
    whole = trainer(pictures)
    figures = list(whole.run())
    assert [f["step"] for f in figures] == [1, 2, 3, 4]
    assert [f["own"] for f in figures] == [0, 0, 1, 1]
    first = trainer(pictures)
    run = first.run()
    next(run), next(run), next(run)
    first.save(tmp_path)
    second = trainer(pictures)
    second.resume(tmp_path)
    assert second.step == 3
    list(second.run())
    for name, weight in whole.average.state_dict().items():
        torch.testing.assert_close(second.average.state_dict()[name], weight, msg=name)


def test_same_seed_same_clips(pictures: Path) -> None:
    atlas = Atlas.load(pictures, torch.device("cpu"))
    one, two = (Renderer(atlas, torch.Generator().manual_seed(4)).clips(3, 4) for _ in range(2))
    assert torch.equal(one, two)
    assert one.shape == (3, 4, 3, 224, 224)
    assert one.isfinite().all()


def test_held_out_pictures_are_not_trained_on(pictures: Path) -> None:
    device = torch.device("cpu")
    trained = Atlas.load(pictures, device).pictures[0]
    held_out = Atlas.load(pictures, device, held_out=True).pictures[0]
    assert len(trained) == 12
    assert len(held_out) == 1
    assert not any(torch.equal(picture, held_out[0]) for picture in trained)


def test_command_writes_checkpoint_and_log(pictures: Path, tmp_path: Path) -> None:
    main([str(pictures), str(tmp_path), "--tiny", "--log-every", "1"])
    assert (tmp_path / "checkpoint" / "model.safetensors").is_file()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] >= 4
    assert all(np.isfinite(line["choice"]) for line in lines)
