"""Origin `module:`: a function of the user's own code that returns a torch module. It runs that code."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from pathlib import Path
from typing import Any

from torch import nn

from convexport.export.sources.foreign import Origin, name_of, network_of
from convexport.export.sources.network import Network
from convexport.export.sources.state_dict import load_into, read_state
from convexport.export.sources.stated import Foreign, Known
from convexport.runtime.errors import UsageError, first_line
from convexport.training.datasets import torchvision_datasets

PREFIX = "module:"
_EXPECTED = "name it as module:package.module:function, or module:path/to/file.py:function"


def open_module(what: str, path: Path | None, stated: Foreign) -> Network:
    """The network that a user's function returns.

    Args:
        what: `module:package.module:function` or `module:path/to/file.py:function`; a function may be `Class.method`.
        path: A file with its weights; None if the function loads them itself.
        stated: Other stated facts, and the function's arguments.

    Raises:
        UsageError: There is no such function, or it does not accept the arguments, or does not return a module.
        CheckpointError: Its weights do not fit.
    """
    place, _, function = what.removeprefix(PREFIX).rpartition(":")
    if not place or not function:
        raise UsageError(f"--model {what} names no function", _EXPECTED)
    torchvision_datasets()  # code may import torchvision, and a CPU build of torch lacks two of its operators
    found: Any = _imported(place, what)
    for name in function.split("."):
        if not hasattr(found, name):
            known = [one for one in vars(found) if callable(getattr(found, one, None)) and not one.startswith("_")]
            raise UsageError.unknown(f"function in {place}", name, known)
        found = getattr(found, name)
    module = _called(found, what, stated.arguments)
    if not isinstance(module, nn.Module):
        kind = f"an object of type {type(module).__name__}"
        raise UsageError(f"--model {what} returned {kind}, expected a torch.nn.Module", "return the network itself")
    provenance, sha256 = f"made by {place}:{function}", ""
    remarks: tuple[str, ...] = (
        f"weights     those that {function} returned; without --weights they are random, unless it loads some",
    )
    if path is not None:
        weights = read_state(path, stated.state)
        load_into(module, weights, what)
        provenance, sha256, remarks = f"{provenance}, weights of {path.name}", weights.sha256, weights.remarks
    origin = Origin(f"{PREFIX}{Path(place).name}:{function}", name_of(what, path), provenance, sha256, remarks)
    return network_of(module, origin, stated, Known())


def _called(function: Any, what: str, arguments: dict[str, Any]) -> Any:
    """What the user's function returns."""
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise UsageError(
            f"--model {what} cannot be called with {arguments} ({first_line(error)})",
            """give its arguments as JSON, such as --arguments '{"classes": 7}'""",
        ) from error
    except ValueError:  # some functions written in C do not say what they take
        pass
    try:
        return function(**arguments)
    except Exception as error:  # the user's own code may raise anything
        raise _raised(what, error) from error


def _raised(what: str, error: Exception) -> UsageError:
    """What the user's code raised, and where."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(last.filename).name} line {last.lineno}"
    reason = first_line(error)
    if isinstance(error, SyntaxError):
        place, reason = f"{Path(error.filename or '').name} line {error.lineno}", error.msg
    return UsageError(f"--model {what} raised {type(error).__name__} ({reason}) at {place}", "correct it")


def _imported(place: str, what: str) -> Any:
    """The module at `place`: a file, or a name that Python finds from here."""
    try:
        if place.endswith(".py"):
            return _from_file(Path(place))
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))  # as `python -m` has it; a console script does not
        return importlib.import_module(place)
    except (ImportError, FileNotFoundError) as error:
        raise UsageError(f"--model {what} cannot be imported ({first_line(error)})", _EXPECTED) from error
    except Exception as error:  # the user's own code may raise anything
        raise _raised(what, error) from error


def _from_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    folder = str(path.parent.absolute())
    if folder not in sys.path:
        sys.path.insert(0, folder)  # what stands beside it
    spec.loader.exec_module(module)
    return module
