"""Memory: a cell's footprint, a device's headroom, and why an attempt ran out of memory."""
