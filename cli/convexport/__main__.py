"""`python -m convexport`."""

from __future__ import annotations

import sys

from convexport.cli.start import dispatch

sys.exit(dispatch())
