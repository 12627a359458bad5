"""The parts of ``python -m benchmarks.feedback``, one a part of the feedback loop."""
