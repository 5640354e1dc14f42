"""`python -m stainssl`: the same command line, from a clone that was not installed."""

from stainssl.cli import main

if __name__ == "__main__":
    main()
