"""Benchmarks: self-speculation, every alternative and the ideal in one run."""
