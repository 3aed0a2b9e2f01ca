"""Control: the HTTP API on the unix socket, its server, and its client.

Rules: the API reads the committed state and submits events; it decides nothing. The client imports nothing that is
slow to import, because `boundctl` is expected to answer at once.
"""
