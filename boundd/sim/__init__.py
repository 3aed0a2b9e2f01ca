"""Deterministic simulation of the core under a virtual clock."""
