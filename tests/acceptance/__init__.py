"""Whole runs of the real daemon, as a user sees them."""
