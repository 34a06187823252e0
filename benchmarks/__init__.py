"""Benchmarks, which stay in the repository: the laboratory, a pytest-benchmark suite, two programs."""
