"""Triton over gRPC: the blocking and the asyncio transport, twins."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any

import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from autogaze_client._grpc_messages import (
    REGISTER_SECONDS,
    ServerAddress,
    is_late,
    known_already,
    lost_regions,
    model_statistics,
    not_ready,
    read_response,
    request_inputs,
    requested_outputs,
    server_timeout,
    translate_error,
)
from autogaze_client._shared_memory import RegionPool, SharedRegion, stale_regions
from autogaze_client._transport import CallOptions
from autogaze_client._wire import Inputs, Tensors
from autogaze_client.statistics import ModelStatistics

__all__ = ["AsyncGrpcTransport", "GrpcTransport"]

_LOG = logging.getLogger("autogaze_client")


class GrpcTransport:
    """Triton over gRPC, blocking. Thread-safe."""

    def __init__(self, address: ServerAddress) -> None:
        self._address = address
        self._headers = dict(address.headers)
        self._memory = address.memory()
        self._triton = triton.InferenceServerClient(**address.channel_options())

    def infer(
        self,
        model: str,
        inputs: Inputs,
        outputs: Iterable[str],
        timeout: float | None,
        call: CallOptions | None = None,
    ) -> Tensors:
        """Runs one request.

        Raises:
            AutoGazeError: the child that fits the gRPC status.
        """
        names, started = tuple(outputs), time.monotonic()
        try:
            try:
                result = self._send(model, inputs, names, timeout, call)
            except InferenceServerException as error:
                if not (self._memory.enabled and lost_regions(error)):
                    raise
                # A restarted server knows no region: tell it again once, then go back to the wire.
                self._memory.forget_registrations()
                try:
                    result = self._send(model, inputs, names, timeout, call)
                except InferenceServerException as again:
                    if not lost_regions(again):
                        raise
                    self._memory.disable(again)
                    result = self._send(model, inputs, names, timeout, call)
        except InferenceServerException as error:
            raise translate_error(error, self._address.url, late=is_late(started, timeout)) from error
        return read_response(result, names)

    def _send(
        self,
        model: str,
        inputs: Inputs,
        names: tuple[str, ...],
        timeout: float | None,
        call: CallOptions | None,
    ) -> Any:
        shared = self._share(inputs)
        try:
            return self._triton.infer(
                model,
                request_inputs(inputs, {name: region for name, (_, region) in shared.items()}),
                outputs=requested_outputs(names),
                client_timeout=timeout,
                timeout=server_timeout(timeout),
                headers={**self._headers, **call.headers()} if call else self._headers,
                **(call.request_options() if call else {}),
            )
        finally:
            self._memory.give_back(shared.values())

    def _share(self, inputs: Inputs) -> dict[str, tuple[RegionPool, SharedRegion]]:
        """Puts the large inputs where the server reads them; what it cannot read goes the next way."""
        while True:
            shared = self._memory.share(inputs)
            try:
                for pool, region in shared.values():
                    self._register(pool, region)
                if all(region.registered for _, region in shared.values()):
                    return shared
            except BaseException:
                self._memory.give_back(shared.values())
                raise
            self._memory.give_back(shared.values())

    def _register(self, pool: RegionPool, region: SharedRegion) -> None:
        """Makes a region known to the server; where it does not share memory with this client, the pool is given up."""
        if region.registered or not pool.enabled:
            return
        call = {"headers": self._headers, "client_timeout": REGISTER_SECONDS}
        try:
            pool.register(self._triton, region, **call)
        except InferenceServerException as error:
            if not known_already(error):
                pool.disable(f"{self._address.url}: {error.message()}")
                return
        region.registered = True
        if pool.cleaned:
            return
        pool.cleaned = True
        try:
            for name in stale_regions(pool.status(self._triton, **call)):
                pool.unregister(self._triton, name, **call)
        except InferenceServerException as error:
            _LOG.debug("%s: regions of clients that are gone stay registered: %s", self._address.url, error)

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
        try:
            for pool, name in self._memory.registered():
                pool.unregister(self._triton, name, headers=self._headers, client_timeout=REGISTER_SECONDS)
        except InferenceServerException:
            pass  # the server is gone, and with it what it knew
        finally:
            self._memory.close()
        self._triton.close()


class AsyncGrpcTransport:
    """Triton over gRPC for asyncio. Used from one event loop."""

    def __init__(self, address: ServerAddress) -> None:
        self._address = address
        self._headers = dict(address.headers)
        self._memory = address.memory()
        self._triton = triton_aio.InferenceServerClient(**address.channel_options())

    async def infer(
        self,
        model: str,
        inputs: Inputs,
        outputs: Iterable[str],
        timeout: float | None,
        call: CallOptions | None = None,
    ) -> Tensors:
        """Runs one request.

        Raises:
            AutoGazeError: the child that fits the gRPC status.
        """
        names, started = tuple(outputs), time.monotonic()
        try:
            try:
                result = await self._send(model, inputs, names, timeout, call)
            except InferenceServerException as error:
                if not (self._memory.enabled and lost_regions(error)):
                    raise
                # A restarted server knows no region: tell it again once, then go back to the wire.
                self._memory.forget_registrations()
                try:
                    result = await self._send(model, inputs, names, timeout, call)
                except InferenceServerException as again:
                    if not lost_regions(again):
                        raise
                    self._memory.disable(again)
                    result = await self._send(model, inputs, names, timeout, call)
        except InferenceServerException as error:
            raise translate_error(error, self._address.url, late=is_late(started, timeout)) from error
        return read_response(result, names)

    async def _send(
        self,
        model: str,
        inputs: Inputs,
        names: tuple[str, ...],
        timeout: float | None,
        call: CallOptions | None,
    ) -> Any:
        shared = await self._share(inputs)
        try:
            return await self._triton.infer(
                model,
                request_inputs(inputs, {name: region for name, (_, region) in shared.items()}),
                outputs=requested_outputs(names),
                client_timeout=timeout,
                timeout=server_timeout(timeout),
                headers={**self._headers, **call.headers()} if call else self._headers,
                **(call.request_options() if call else {}),
            )
        finally:
            self._memory.give_back(shared.values())

    async def _share(self, inputs: Inputs) -> dict[str, tuple[RegionPool, SharedRegion]]:
        """Puts the large inputs where the server reads them; what it cannot read goes the next way."""
        while True:
            shared = self._memory.share(inputs)
            try:
                for pool, region in shared.values():
                    await self._register(pool, region)
                if all(region.registered for _, region in shared.values()):
                    return shared
            except BaseException:
                self._memory.give_back(shared.values())
                raise
            self._memory.give_back(shared.values())

    async def _register(self, pool: RegionPool, region: SharedRegion) -> None:
        """Makes a region known to the server; where it does not share memory with this client, the pool is given up."""
        if region.registered or not pool.enabled:
            return
        call = {"headers": self._headers, "client_timeout": REGISTER_SECONDS}
        try:
            await pool.register(self._triton, region, **call)
        except InferenceServerException as error:
            if not known_already(error):
                pool.disable(f"{self._address.url}: {error.message()}")
                return
        region.registered = True
        if pool.cleaned:
            return
        pool.cleaned = True
        try:
            for name in stale_regions(await pool.status(self._triton, **call)):
                await pool.unregister(self._triton, name, **call)
        except InferenceServerException as error:
            _LOG.debug("%s: regions of clients that are gone stay registered: %s", self._address.url, error)

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
        try:
            for pool, name in self._memory.registered():
                await pool.unregister(
                    self._triton, name, headers=self._headers, client_timeout=REGISTER_SECONDS
                )
        except InferenceServerException:
            pass  # the server is gone, and with it what it knew
        finally:
            self._memory.close()
        await self._triton.close()
