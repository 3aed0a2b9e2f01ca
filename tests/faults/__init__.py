"""Fault campaigns: each breaks one promise's protection on purpose and counts what came of it (docs/faults.md)."""
