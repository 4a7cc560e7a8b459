"""`python -m convexport.cli.classify`."""

from convexport.cli.classify import main

if __name__ == "__main__":
    raise SystemExit(main())
