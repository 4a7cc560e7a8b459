"""Libraries of networks that are not always there, and their downloads, which a machine may not reach."""

from __future__ import annotations

import logging
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from convexport.runtime.devices import import_library
from convexport.runtime.errors import CheckpointError, UnavailableError, first_line
from convexport.training.datasets import torchvision_datasets

_PATIENCE = 10  # seconds


def library(name: str) -> Any:
    """timm or transformers, or a module of theirs. Raises `UnavailableError` where it is not installed."""
    torchvision_datasets()  # they import torchvision, and a CPU build of torch lacks two of its operators
    package = name.partition(".")[0]
    try:
        return import_library(name)
    except ImportError as error:
        raise UnavailableError(
            f"{package} cannot be imported ({first_line(error)})", f"pip install 'convexport[{package}]'"
        ) from error


@contextmanager
def read_from_network(what: str) -> Iterator[None]:
    """Turns what goes wrong in a download of `what` from Hugging Face into a `CheckpointError`.

    Without a network the library would try for a minute; here only what it has downloaded earlier is looked for.
    """
    constants, before = library("huggingface_hub.constants"), library("huggingface_hub.constants").HF_HUB_OFFLINE
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    reason = _unreachable(constants.ENDPOINT)
    constants.HF_HUB_OFFLINE = before or reason is not None
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{what} cannot be downloaded ({reason or first_line(error)})",
            "download them elsewhere and name the file with --weights",
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = before


def _unreachable(address: str) -> str | None:
    """Why a server cannot be reached; None where it answers, whatever its answer is."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=_PATIENCE):
            return None
    except urllib.error.HTTPError:
        return None
    except OSError as error:  # URLError is one
        return first_line(OSError(str(getattr(error, "reason", error))))
