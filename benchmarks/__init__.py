"""Figures that the documentation shows, one module a subject: ``python -m benchmarks.NAME``."""
