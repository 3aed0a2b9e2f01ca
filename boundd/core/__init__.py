"""The pure core: it decides, and does nothing.

No module here awaits, reads a clock, a file, an environment variable or a random number. Time, identifiers and
randomness are arguments, so the same input gives the same plan. import-linter runs this rule.
"""
