"""Compares boundd's packing with other policies and with a clairvoyant packer (docs/benchmarks.md)."""
