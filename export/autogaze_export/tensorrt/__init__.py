"""Builds plans with TensorRT or TensorRT-RTX, whose Python APIs are one; neither is imported before a build."""
