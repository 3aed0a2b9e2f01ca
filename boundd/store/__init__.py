"""The SQLite store: the truth about cells, attempts and results. One writer, one short transaction at a time."""
