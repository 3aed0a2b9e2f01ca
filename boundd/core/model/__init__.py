"""The core's data: cells, attempts, devices, outcomes, events, effects, and the state of a run."""
