"""`python -m boundd` is the `boundd` command."""

from boundd.main import main

if __name__ == "__main__":
    main()
