"""What an event does to the state: the step, the end of an attempt, its verdict and what is tried next."""
