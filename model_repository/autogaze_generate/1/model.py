"""Triton model ``autogaze_generate``: preprocessing, engine and generation loop of all clips that are here."""

import triton_python_backend_utils as pb_utils
from autogaze_backend.clip_service import ClipLimits, ClipService
from autogaze_backend.limits import read_limits
from autogaze_backend.model import GazeModel
from autogaze_backend.triton import find_bundle, model_parameters, serve_as_finished


class TritonPythonModel:
    def initialize(self, args):
        limits = read_limits(ClipLimits, model_parameters(args))
        self._service = ClipService(GazeModel.load(find_bundle(args)), limits)

    def execute(self, requests):
        serve_as_finished(pb_utils, requests, self._service.submit)

    def finalize(self):
        self._service.close()
