"""Command line as `python -m stainssl`, for a clone that is not installed."""

from stainssl.cli import main

if __name__ == "__main__":
    main()
