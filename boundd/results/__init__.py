"""What was measured, for people and for other tools: bounds, staleness, exports, the legacy format, the table.

Pure: text in, text out. Who writes the files is `boundd.telemetry.export_file`.
"""
