"""The worker: a traversal search over the points of an acceleration method, for one cell.

Only this package imports torch, diffusers and the acceleration libraries.
"""
