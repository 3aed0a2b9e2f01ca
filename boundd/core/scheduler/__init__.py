"""Who starts now, on which device, in which order, and why the others wait."""
