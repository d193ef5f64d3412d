"""Triton model ``autogaze_stream``: one frame a request, frames of waiting streams share a batch."""

import triton_python_backend_utils as pb_utils
from autogaze_backend.canary import CanaryLimits
from autogaze_backend.engines import served_engine
from autogaze_backend.limits import IngestLimits, StreamLimits, read_limits
from autogaze_backend.metering import count_streams
from autogaze_backend.model import GazeModel
from autogaze_backend.observing import Observer
from autogaze_backend.stream_service import StreamService
from autogaze_backend.triton import find_bundle, model_parameters, sequence_bounds, serve


class TritonPythonModel:
    def initialize(self, args):
        parameters = model_parameters(args)
        self._observer = Observer.for_model(pb_utils, args)
        model = self._observer.metered(GazeModel.load(find_bundle(args), **served_engine(parameters)))
        model.warm_up()
        limits = read_limits(StreamLimits, parameters)
        limits.check_sequences(*sequence_bounds(args))
        self._service = StreamService(
            model,
            limits,
            IngestLimits.from_parameters(parameters),
            read_limits(CanaryLimits, parameters),
        )
        count_streams(self._service.pool, self._observer.meters)

    def execute(self, requests):
        return serve(pb_utils, requests, self._service.run, self._observer)

    def is_ready(self):
        return self._service.is_ready()

    def finalize(self):
        self._service.close()
        self._observer.close()
