"""What a client and the daemon agree on: requests, answers, routes and their limits.

Rules: it does nothing and imports nothing of boundd's. The daemon checks what it is sent against these types, the
client is typed by them, and /openapi.json is made from them. An answer is a `TypedDict`, because it is what its JSON
is, and a client that only looks needs no class of ours at run time.
"""
