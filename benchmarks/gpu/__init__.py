"""Benchmarks of a GPU: ``python -m benchmarks.gpu``; docs/performance.md says what each number means."""
