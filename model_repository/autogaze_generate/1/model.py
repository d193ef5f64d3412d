"""Triton model ``autogaze_generate``: preprocessing, engine and generation loop of a batch of clips."""

import triton_python_backend_utils as pb_utils
from autogaze_backend.clips import generate_clips
from autogaze_backend.model import GazeModel
from autogaze_backend.triton import find_bundle, serve_as_finished


class TritonPythonModel:
    def initialize(self, args):
        model = GazeModel.load(find_bundle(args))
        self._run = lambda batch, cancelled: generate_clips(model, batch, cancelled)

    def execute(self, requests):
        serve_as_finished(pb_utils, requests, self._run)
