"""NVIDIA's Multi-Process Service: the processes of a server then use a GPU side by side instead of in turns."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

from autogaze_backend.serving.errors import ServerStartError

__all__ = ["MultiProcessService"]

_CONTROL = "nvidia-cuda-mps-control"
_SECONDS = 30.0


class MultiProcessService:
    """A service of its own for one server: others on the machine, and what they set, are left alone.

    Attributes:
        environment: what the server's processes must have to use it; empty before it runs.

    Example:
        >>> with MultiProcessService() as service:  # doctest: +SKIP
        ...     config = TritonServerConfig(repository, environment=service.environment)
    """

    def __init__(self) -> None:
        self.environment: dict[str, str] = {}
        self._control = ""
        self._folder: Path | None = None

    def __enter__(self) -> MultiProcessService:
        """Starts it.

        Raises:
            ServerStartError: it is not installed, or does not start.
        """
        control = shutil.which(_CONTROL)
        if control is None:
            raise ServerStartError(
                f"--mps needs {_CONTROL}, which is not on PATH: install the NVIDIA driver's compute utilities, or "
                "serve without --mps"
            )
        self._control = control
        self._folder = Path(tempfile.mkdtemp(prefix="autogaze-mps-"))
        self.environment = {
            "CUDA_MPS_PIPE_DIRECTORY": str(self._folder),
            "CUDA_MPS_LOG_DIRECTORY": str(self._folder),
        }
        try:
            self._run([control, "-d"], "")
        except ServerStartError:
            self._forget()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends it; the server must have ended before."""
        try:
            self._run([self._control], "quit\n")
        except ServerStartError:
            if error is None:
                raise
        finally:
            self._forget()

    def _run(self, command: list[str], said: str) -> None:
        try:
            subprocess.run(
                command,
                input=said,
                env={**os.environ, **self.environment},
                # The daemon keeps what it inherits: a pipe would never end.
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                text=True,
                timeout=_SECONDS,
                check=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise ServerStartError(
                f"the Multi-Process Service failed: {error}; correct what its log names, or serve without --mps\n"
                f"{self._log()}".rstrip()
            ) from error

    def _log(self) -> str:
        """What the service wrote last."""
        path = Path(self.environment["CUDA_MPS_LOG_DIRECTORY"]) / "control.log"
        if not path.is_file():
            return ""
        return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-10:])

    def _forget(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder, self.environment = None, {}
