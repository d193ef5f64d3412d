"""Triton model ``autogaze_generate``: preprocessing, engine and generation loop of a batch of clips."""

import triton_python_backend_utils as pb_utils
from autogaze_backend.clips import generate_clips
from autogaze_backend.model import GazeModel
from autogaze_backend.triton import find_bundle, serve


class TritonPythonModel:
    def initialize(self, args):
        model = GazeModel.load(find_bundle(args))
        self._run = lambda batch: generate_clips(model, batch)

    def execute(self, requests):
        return serve(pb_utils, requests, self._run)
