"""Published speed-ups at true size with random weights, and the peak memory of each model and method, on one GPU.

    make bench-gpu [PYTHON=python3]

It uses the python it is given, and needs only torch, transformers, diffusers, DeepCache, tgate and tomesd beside it; no
hub, no network. `--tiny` runs the same on the built-in digits models on a CPU, to see that it works.
"""
