"""Triton model ``autogaze_stream``: one frame a request, frames of waiting streams share a batch."""

import os

import triton_python_backend_utils as pb_utils
from autogaze_backend.canary import CanaryLimits
from autogaze_backend.engines import served_engine
from autogaze_backend.instances import InstanceShare
from autogaze_backend.limits import IngestLimits, StreamLimits, read_limits
from autogaze_backend.metering import count_streams
from autogaze_backend.model import GazeModel
from autogaze_backend.observing import Observer
from autogaze_backend.stream_service import StreamService
from autogaze_backend.triton import (
    StreamServer,
    find_bundle,
    max_batch_size,
    model_parameters,
    sequence_bounds,
    settle,
)


class TritonPythonModel:
    def initialize(self, args):
        parameters = model_parameters(args)
        self._observer = Observer.for_model(pb_utils, args)
        share = InstanceShare.of(args)
        limits = share.of_limits(read_limits(StreamLimits, parameters))
        limits.check_sequences(*sequence_bounds(args))
        os.environ.update(share.engine_environment(limits.max_streams))
        loaded = GazeModel.load(find_bundle(args), **served_engine(parameters), threads=share.threads())
        model = self._observer.metered(loaded)
        model.warm_up()
        self._service = StreamService(
            model,
            limits,
            IngestLimits.from_parameters(parameters),
            read_limits(CanaryLimits, parameters),
        )
        count_streams(self._service.pool, self._observer.meters)
        self._server = StreamServer(pb_utils, self._service.run, self._observer, max_batch_size(args))
        settle()

    def execute(self, requests):
        return self._server.serve(requests)

    def is_ready(self):
        return self._service.is_ready()

    def finalize(self):
        self._service.close()
        self._observer.close()
