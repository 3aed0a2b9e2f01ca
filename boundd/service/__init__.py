"""The anyio loops of the daemon. They see ports only: they do what the core decides and report what happened."""
