"""boundd finds the upper bound of what acceleration can do for diffusion models, unattended."""

__version__ = "0.1.0"
