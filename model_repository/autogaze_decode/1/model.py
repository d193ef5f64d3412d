"""Triton model ``autogaze_decode``: tokens to fixations in source coordinates."""

import triton_python_backend_utils as pb_utils
from autogaze_backend.clips import decode_clip
from autogaze_backend.observing import Observer
from autogaze_backend.triton import one_by_one, serve


class TritonPythonModel:
    def initialize(self, args):
        self._observer = Observer.for_model(pb_utils, args, stage="decode")
        self._run = one_by_one(lambda tensors, caller: decode_clip(tensors))

    def execute(self, requests):
        return serve(pb_utils, requests, self._run, self._observer)

    def finalize(self):
        self._observer.close()
