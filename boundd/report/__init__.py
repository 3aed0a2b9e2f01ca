"""The picture of a whole run, drawn from an export."""
