"""`python -m boundd` is the `boundd` command."""

from boundd.start import main

if __name__ == "__main__":
    main()
