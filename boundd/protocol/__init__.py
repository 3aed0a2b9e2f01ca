"""What a worker and boundd agree on: environment, result lines, the device lease.

Both sides import this package; it imports neither. It uses the standard library only, so that a worker in
another environment can import it too.
"""
