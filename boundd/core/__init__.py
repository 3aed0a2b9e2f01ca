"""The pure core: it decides what is to be done, and leaves doing it to the shell.

No module here awaits, or reads a clock, a file, an environment variable or a random number. Time, identifiers and
randomness are arguments, so the same input gives the same plan. import-linter checks this.
"""
