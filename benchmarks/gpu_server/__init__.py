"""The real Triton server on a GPU: ``python -m benchmarks.gpu_server``; docs/performance.md says what is measured."""
