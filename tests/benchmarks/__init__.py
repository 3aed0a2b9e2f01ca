"""The benchmarks, small."""
