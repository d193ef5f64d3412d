"""One plan ready to run: its context with every address bound, captured as a CUDA graph where that works."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autogaze_client._errors import PlanMismatchError
from numpy.typing import NDArray

from autogaze_backend.tensorrt_engine.api import Binding, PlanExecutionError, TensorRt
from autogaze_backend.tensorrt_engine.blocks import Block
from autogaze_backend.tensorrt_engine.cuda import Cuda, CudaError

_LOG = logging.getLogger("autogaze.tensorrt")


@dataclass(frozen=True)
class OpenedPlan:
    """A deserialised plan.

    Attributes:
        name: for messages.
        engine: TensorRT's.
        bindings: its tensors.
        scratch: bytes that a context needs.
    """

    name: str
    engine: Any
    bindings: tuple[Binding, ...]
    scratch: int

    def binding(self, name: str) -> Binding:
        """The tensor of a name."""
        return next(binding for binding in self.bindings if binding.name == name)


class PhaseGraph:
    """Runs one plan, always on the same memory.

    Args:
        api: TensorRT.
        cuda: device and stream.
        plan: what to run.
        scratch: address and size of memory that all graphs share; they never run at once.
        caches: address of each cache input; its output lies there too.
        outputs: the outputs that the host may read, in the order of the record.
        last: the last of them that it reads every time; None for all.

    Attributes:
        inputs: the host's side of each input but the caches: write here, then ``queue``.
        outputs: the host's side of each output but the caches: valid once the stream is synchronised.
        fallback: why no CUDA graph could be made; None where there is one.
    """

    def __init__(
        self,
        api: TensorRt,
        cuda: Cuda,
        plan: OpenedPlan,
        *,
        scratch: tuple[int, int],
        caches: Mapping[str, int],
        outputs: Sequence[str],
        last: str | None = None,
    ) -> None:
        self._api, self._cuda, self.plan, self._last = api, cuda, plan, last
        inputs = [b for b in plan.bindings if b.is_input and b.name not in caches]
        self._inputs = Block(cuda, inputs)
        self._outputs = Block(cuda, [plan.binding(name) for name in outputs])
        self.inputs: dict[str, NDArray[Any]] = self._inputs.host
        self.outputs: dict[str, NDArray[Any]] = self._outputs.host
        self.fallback: str | None = None
        self._graph: Any = None
        # Of caches that the engine writes elsewhere: from where, to where, bytes.
        self._copies: list[tuple[int, int, int]] = []
        self._context = api.create_context(plan.engine, *scratch, plan.name)
        addresses = {**self._inputs.addresses, **self._outputs.addresses, **caches}
        for binding in plan.bindings:
            address = addresses.get(binding.name)
            if address is None:
                address = self._cache_output(binding, caches)
            api.bind(self._context, binding.name, address, plan.name)

    def prepare(self) -> None:
        """Runs the plan once, then captures it; where it cannot be captured, it will be enqueued plainly.

        The first run is plain because TensorRT finishes its set-up in it, which a capture does not allow.

        Raises:
            PlanExecutionError: not even that works.
            CudaError: likewise.
        """
        self._enqueue()
        self._cuda.synchronize()
        try:
            self._graph = self._cuda.capture(self._enqueue)
        except (CudaError, PlanExecutionError) as error:
            self.fallback = str(error)
            _LOG.warning("%s runs without a CUDA graph, which is slower: %s", self.plan.name, error)

    def queue(self) -> None:
        """Puts a run into the stream: inputs up, the plan, the record down."""
        if self._graph is None:
            self._enqueue()
        else:
            self._cuda.launch(self._graph)

    def download_rest(self) -> None:
        """Queues the copy of the outputs after ``last``, which a run leaves on the device."""
        if self._last is not None:
            self._outputs.download()

    def release(self) -> None:
        """Gives the context up."""
        self._context = None

    def _enqueue(self) -> None:
        self._inputs.upload()
        self._api.enqueue(self._context, self._cuda.stream, self.plan.name)
        for source, target, size in self._copies:
            self._cuda.copy(target, source, size)
        self._outputs.download(self._last)

    def _cache_output(self, binding: Binding, caches: Mapping[str, int]) -> int:
        """Where a cache's output goes: into its input's memory if the engine says that it may."""
        source = binding.name.removeprefix("new_")
        if binding.is_input or source not in caches:
            raise PlanMismatchError(
                f"{binding.name} of {self.plan.name} is no tensor that this version knows; build the plans again with "
                "this version, or install the version that built them"
            )
        if binding.alias == source:
            return caches[source]
        if binding.alias is not None:
            raise PlanMismatchError(
                f"{binding.name} of {self.plan.name} must share the memory of {binding.alias}, not of {source}; build "
                "the plans again"
            )
        # A graph without cache updates gives the whole cache as a new tensor.
        address = self._cuda.allocate(binding.size)
        self._copies.append((address, caches[source], binding.size))
        return address
