"""Pictures of a gaze over time: masks, blended and interframe output, update plans (spec: visualization).

The names are at the top: ``from autogaze_client import AutoGazeVisualizationState``.
"""
