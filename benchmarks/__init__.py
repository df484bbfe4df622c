"""Benchmarks, which report ratios within one run. They are not tests."""
