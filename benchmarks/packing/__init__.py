"""How well boundd packs, beside other policies and a packer that knows everything (docs/benchmarks.md)."""
