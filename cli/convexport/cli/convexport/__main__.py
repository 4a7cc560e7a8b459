"""`python -m convexport.cli.convexport`."""

from convexport.cli.convexport import main

if __name__ == "__main__":
    raise SystemExit(main())
