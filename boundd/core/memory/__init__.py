"""Memory: what a cell is expected to take, what a device has left, and why an attempt ran out of it."""
