"""What boundd knows by name, each fact declared once: models, schedulers, methods, worker options, libraries, kinds of
error.

The daemon, the worker, the command line, the docs and the tests derive what they need from here. Nothing but the
standard library is imported, so that a config is checked without a deep-learning library.
"""
