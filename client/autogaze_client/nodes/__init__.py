"""A composable pipeline: clips in, an engine, packets out (spec: pipeline §6).

The names are at the top: ``from autogaze_client import AutoGazeTensorPipeline``.
"""
