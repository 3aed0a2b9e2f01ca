"""The commands `boundd` and `boundctl`."""
