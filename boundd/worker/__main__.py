"""`python -m boundd.worker` is the worker's command line."""

from boundd.worker.cli import main

if __name__ == "__main__":
    main(prog_name="python -m boundd.worker")
