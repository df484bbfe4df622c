"""Measurements: ratios within one run, on the embedded server. Nothing here is a test."""
