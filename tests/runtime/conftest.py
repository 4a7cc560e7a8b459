"""What the tests of the runtime run in."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def _garbage_of_its_own() -> Iterator[None]:
    """A collection of garbage looks at what the file's tests made, and not at all that its process holds.

    Where tests of torch ran before, that takes half a second each, and some tests collect hundreds of times.
    """
    gc.freeze()
    yield
    gc.unfreeze()
