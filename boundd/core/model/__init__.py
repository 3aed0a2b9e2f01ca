"""What the core knows: cells, attempts, devices, outcomes, and the state that holds them; events and effects."""
