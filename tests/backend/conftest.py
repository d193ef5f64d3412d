"""The model on the torch engine of a CPU: slow, and the oracle of the kernels that run on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def one_torch_thread() -> Iterator[None]:
    """Rows are small: more threads only wait for each other where other tests run beside."""
    torch = pytest.importorskip("torch", reason="the torch engine needs the extra 'torch'")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def torch_model(bundle: Callable[[str], Path]) -> Callable[..., Any]:
    """Opens a layout with settings; what was opened is kept."""
    pytest.importorskip("torch", reason="the torch engine needs the extra 'torch'")
    from autogaze_backend import GazeModel
    from autogaze_backend.bundle import Bundle
    from autogaze_backend.torch_engine.engine import TorchEngine
    from autogaze_backend.torch_engine.opening import TorchSettings

    loaded: dict[Any, Any] = {}

    def load(layout: str = "release", **changes: Any) -> Any:
        key = (layout, *sorted(changes.items()))
        if key not in loaded:
            own = Bundle.load(bundle(layout))
            settings = TorchSettings(
                **{"slots": 16, "rows": 16, "cache_gib": 0.1, "max_positions": 16384, **changes}
            )
            loaded[key] = GazeModel(own, TorchEngine(own, device="cpu", settings=settings))
        return loaded[key]

    return load
