"""Triton model ``autogaze_generate``: preprocessing, engine, generation loop and fixations of all clips."""

import os

import triton_python_backend_utils as pb_utils
from autogaze_backend.canary import CanaryLimits
from autogaze_backend.clip_service import ClipService
from autogaze_backend.engines import served_engine
from autogaze_backend.instances import InstanceShare
from autogaze_backend.limits import ClipLimits, IngestLimits, read_limits
from autogaze_backend.model import GazeModel
from autogaze_backend.observing import Observer
from autogaze_backend.triton import ClipServer, find_bundle, model_parameters, settle


class TritonPythonModel:
    def initialize(self, args):
        self._observer = Observer.for_model(pb_utils, args)
        parameters = model_parameters(args)
        share = InstanceShare.of(args)
        limits = share.of_limits(read_limits(ClipLimits, parameters))
        os.environ.update(share.engine_environment())
        loaded = GazeModel.load(find_bundle(args), **served_engine(parameters), threads=share.threads())
        model = self._observer.metered(loaded)
        self._service = ClipService(
            model,
            limits,
            IngestLimits.from_parameters(parameters),
            read_limits(CanaryLimits, parameters),
        )
        self._server = ClipServer(pb_utils, self._service.take_in, self._observer)
        settle()

    def execute(self, requests):
        self._server.serve(requests)

    def is_ready(self):
        return self._service.is_ready()

    def finalize(self):
        self._service.close()
        self._observer.close()
