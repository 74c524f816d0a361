"""The frame of the benchmarks; what they measure is never a test."""
