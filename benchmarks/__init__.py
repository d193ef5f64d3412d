"""Benchmarks: ``make bench`` runs those of this machine; timings never decide a test."""
