"""An embedded Triton server: fetch it once, start it, know when it is ready, stop it without leftovers.

Example:
    >>> from autogaze_backend.serving import TritonServer, TritonServerConfig, model_repository_path
    >>> config = TritonServerConfig(model_repository_path(), environment={"AUTOGAZE_BUNDLE": "bundle"})
    >>> with TritonServer(config) as server:  # doctest: +SKIP
    ...     server.wait_until_ready()
    ...     print(server.url)
"""

from autogaze_backend.serving.config import ModelControlMode, TritonServerConfig
from autogaze_backend.serving.errors import ServerFetchError, ServerStartError, UnsupportedHostError
from autogaze_backend.serving.fetching import ensure_installation
from autogaze_backend.serving.host import HostFacts, require_supported_host
from autogaze_backend.serving.installation import TritonInstallation, cache_directory, find_installation
from autogaze_backend.serving.mps import MultiProcessService
from autogaze_backend.serving.repository import model_repository_path, require_bundle, require_bundles
from autogaze_backend.serving.security import RestrictedProtocols, ServerTLS
from autogaze_backend.serving.server import TritonServer
from autogaze_backend.serving.supervision import SupervisedServer
from autogaze_backend.serving.supervision_config import SupervisionConfig, SupervisionState, SupervisionStatus

__all__ = [
    "HostFacts",
    "ModelControlMode",
    "MultiProcessService",
    "RestrictedProtocols",
    "ServerFetchError",
    "ServerStartError",
    "ServerTLS",
    "SupervisedServer",
    "SupervisionConfig",
    "SupervisionState",
    "SupervisionStatus",
    "TritonInstallation",
    "TritonServer",
    "TritonServerConfig",
    "UnsupportedHostError",
    "cache_directory",
    "ensure_installation",
    "find_installation",
    "model_repository_path",
    "require_bundle",
    "require_bundles",
    "require_supported_host",
]
