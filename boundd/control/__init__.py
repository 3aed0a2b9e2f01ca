"""The HTTP API on the unix socket, and its client."""
