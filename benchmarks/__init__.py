"""What boundd costs and how well it packs, measured; docs/benchmarks.md says how to read the numbers."""
