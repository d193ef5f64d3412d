"""Triton model ``autogaze_ingest``: encoded video to frames, under limits."""

import triton_python_backend_utils as pb_utils
from autogaze_backend.ingest import ingest
from autogaze_backend.limits import IngestLimits
from autogaze_backend.observing import Observer
from autogaze_backend.triton import model_parameters, one_by_one, serve, settle


class TritonPythonModel:
    def initialize(self, args):
        self._observer = Observer.for_model(pb_utils, args, stage="ingest")
        limits = IngestLimits.from_parameters(model_parameters(args))
        self._run = one_by_one(lambda tensors, caller: ingest(tensors, limits, caller))
        settle()

    def execute(self, requests):
        return serve(pb_utils, requests, self._run, self._observer)

    def finalize(self):
        self._observer.close()
