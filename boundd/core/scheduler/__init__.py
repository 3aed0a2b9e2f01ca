"""The scheduler: which cells start now, on which device and in which order, and why the others wait."""
