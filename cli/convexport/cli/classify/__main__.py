"""`python -m convexport.cli.classify`."""

from convexport.cli.start import classify

if __name__ == "__main__":
    raise SystemExit(classify())
