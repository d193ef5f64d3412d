"""Triton over gRPC: the blocking and the asyncio transport, twins."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from autogaze_client._grpc_messages import (
    REGISTER_SECONDS,
    ServerAddress,
    lost_regions,
    model_statistics,
    not_ready,
    read_response,
    request_inputs,
    share_inputs,
    translate_error,
)
from autogaze_client._shared_memory import SharedMemoryPool, SharedRegion, stale_regions
from autogaze_client._transport import SequenceStep
from autogaze_client._wire import Tensors
from autogaze_client.statistics import ModelStatistics

__all__ = ["AsyncGrpcTransport", "GrpcTransport"]


class GrpcTransport:
    """Triton over gRPC, blocking. Thread-safe."""

    def __init__(self, address: ServerAddress) -> None:
        self._address = address
        self._headers = dict(address.headers)
        self._shared = SharedMemoryPool(address.shares_memory())
        self._cleaned = False
        self._triton = triton.InferenceServerClient(**address.channel_options())

    def infer(
        self,
        model: str,
        inputs: Tensors,
        outputs: Iterable[str],
        timeout: float | None,
        sequence: SequenceStep | None = None,
    ) -> Tensors:
        """Runs one request.

        Raises:
            AutoGazeError: the child that fits the gRPC status.
        """
        names = list(outputs)
        try:
            try:
                result = self._send(model, inputs, names, timeout, sequence)
            except InferenceServerException as error:
                if not (self._shared.enabled and lost_regions(error)):
                    raise
                # A restarted server knows no region: tell it again once, then go back to the wire.
                self._shared.forget_registrations()
                try:
                    result = self._send(model, inputs, names, timeout, sequence)
                except InferenceServerException as again:
                    if not lost_regions(again):
                        raise
                    self._shared.disable(again)
                    result = self._send(model, inputs, names, timeout, sequence)
        except InferenceServerException as error:
            raise translate_error(error, self._address.url) from error
        return read_response(result, names)

    def _send(
        self,
        model: str,
        inputs: Tensors,
        names: list[str],
        timeout: float | None,
        sequence: SequenceStep | None,
    ) -> Any:
        shared = share_inputs(inputs, self._shared)
        try:
            if shared and not self._register(list(shared.values())):
                self._shared.give_back(list(shared.values()))
                shared = {}
            return self._triton.infer(
                model,
                request_inputs(inputs, shared),
                outputs=[triton.InferRequestedOutput(name) for name in names],
                client_timeout=timeout,
                headers=self._headers,
                **(sequence.request_options() if sequence else {}),
            )
        finally:
            self._shared.give_back(list(shared.values()))

    def _register(self, regions: list[SharedRegion]) -> bool:
        """Makes regions known to the server; False where it does not share memory with this client."""
        call = {"headers": self._headers, "client_timeout": REGISTER_SECONDS}
        for region in regions:
            if region.registered:
                continue
            try:
                self._triton.register_system_shared_memory(region.name, region.key, region.size, **call)
                region.registered = True
                if not self._cleaned:
                    self._cleaned = True
                    status = self._triton.get_system_shared_memory_status(as_json=True, **call)
                    for name in stale_regions(status):
                        self._triton.unregister_system_shared_memory(name, **call)
            except InferenceServerException as error:
                self._shared.disable(f"{self._address.url}: {error.message()}")
                return False
        return True

    def is_model_ready(self, model: str, timeout: float | None) -> bool:
        """Whether the server is up and the model loaded; False where no server answers.

        Raises:
            AutoGazeError: the server answered with an error.
        """
        try:
            return bool(
                self._triton.is_server_ready(headers=self._headers, client_timeout=timeout)
                and self._triton.is_model_ready(model, headers=self._headers, client_timeout=timeout)
            )
        except InferenceServerException as error:
            return not_ready(translate_error(error, self._address.url))

    def statistics(self, timeout: float | None) -> tuple[ModelStatistics, ...]:
        """Counters of every loaded model since the server started.

        Raises:
            AutoGazeError: the child that fits the gRPC status.
        """
        try:
            response = self._triton.get_inference_statistics(headers=self._headers, client_timeout=timeout)
        except InferenceServerException as error:
            raise translate_error(error, self._address.url) from error
        return model_statistics(response)

    def close(self) -> None:
        """Closes the channel and removes this client's shared memory, here and on the server."""
        for region in self._shared.close():
            try:
                self._triton.unregister_system_shared_memory(
                    region.name, headers=self._headers, client_timeout=REGISTER_SECONDS
                )
            except InferenceServerException:
                break  # the server is gone, and with it what it knew
        self._triton.close()


class AsyncGrpcTransport:
    """Triton over gRPC for asyncio. Used from one event loop."""

    def __init__(self, address: ServerAddress) -> None:
        self._address = address
        self._headers = dict(address.headers)
        self._shared = SharedMemoryPool(address.shares_memory())
        self._cleaned = False
        self._triton = triton_aio.InferenceServerClient(**address.channel_options())

    async def infer(
        self,
        model: str,
        inputs: Tensors,
        outputs: Iterable[str],
        timeout: float | None,
        sequence: SequenceStep | None = None,
    ) -> Tensors:
        """Runs one request.

        Raises:
            AutoGazeError: the child that fits the gRPC status.
        """
        names = list(outputs)
        try:
            try:
                result = await self._send(model, inputs, names, timeout, sequence)
            except InferenceServerException as error:
                if not (self._shared.enabled and lost_regions(error)):
                    raise
                # A restarted server knows no region: tell it again once, then go back to the wire.
                self._shared.forget_registrations()
                try:
                    result = await self._send(model, inputs, names, timeout, sequence)
                except InferenceServerException as again:
                    if not lost_regions(again):
                        raise
                    self._shared.disable(again)
                    result = await self._send(model, inputs, names, timeout, sequence)
        except InferenceServerException as error:
            raise translate_error(error, self._address.url) from error
        return read_response(result, names)

    async def _send(
        self,
        model: str,
        inputs: Tensors,
        names: list[str],
        timeout: float | None,
        sequence: SequenceStep | None,
    ) -> Any:
        shared = share_inputs(inputs, self._shared)
        try:
            if shared and not await self._register(list(shared.values())):
                self._shared.give_back(list(shared.values()))
                shared = {}
            return await self._triton.infer(
                model,
                request_inputs(inputs, shared),
                outputs=[triton.InferRequestedOutput(name) for name in names],
                client_timeout=timeout,
                headers=self._headers,
                **(sequence.request_options() if sequence else {}),
            )
        finally:
            self._shared.give_back(list(shared.values()))

    async def _register(self, regions: list[SharedRegion]) -> bool:
        """Makes regions known to the server; False where it does not share memory with this client."""
        call = {"headers": self._headers, "client_timeout": REGISTER_SECONDS}
        for region in regions:
            if region.registered:
                continue
            try:
                await self._triton.register_system_shared_memory(region.name, region.key, region.size, **call)
                region.registered = True
                if not self._cleaned:
                    self._cleaned = True
                    status = await self._triton.get_system_shared_memory_status(as_json=True, **call)
                    for name in stale_regions(status):
                        await self._triton.unregister_system_shared_memory(name, **call)
            except InferenceServerException as error:
                self._shared.disable(f"{self._address.url}: {error.message()}")
                return False
        return True

    async def is_model_ready(self, model: str, timeout: float | None) -> bool:
        """Whether the server is up and the model loaded; False where no server answers.

        Raises:
            AutoGazeError: the server answered with an error.
        """
        try:
            return bool(
                await self._triton.is_server_ready(headers=self._headers, client_timeout=timeout)
                and await self._triton.is_model_ready(model, headers=self._headers, client_timeout=timeout)
            )
        except InferenceServerException as error:
            return not_ready(translate_error(error, self._address.url))

    async def statistics(self, timeout: float | None) -> tuple[ModelStatistics, ...]:
        """Counters of every loaded model since the server started.

        Raises:
            AutoGazeError: the child that fits the gRPC status.
        """
        try:
            response = await self._triton.get_inference_statistics(
                headers=self._headers, client_timeout=timeout
            )
        except InferenceServerException as error:
            raise translate_error(error, self._address.url) from error
        return model_statistics(response)

    async def close(self) -> None:
        """Closes the channel and removes this client's shared memory, here and on the server."""
        for region in self._shared.close():
            try:
                await self._triton.unregister_system_shared_memory(
                    region.name, headers=self._headers, client_timeout=REGISTER_SECONDS
                )
            except InferenceServerException:
                break  # the server is gone, and with it what it knew
        await self._triton.close()
