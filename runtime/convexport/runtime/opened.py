"""A classifier's open bundle and back end; opened again in a process that was forked.

A library's threads and its memory on a GPU do not survive a fork: using or freeing what was inherited hangs or crashes.
So a forked child never frees what it inherited, and opens its own at its first use.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from dataclasses import dataclass

from convexport.runtime.backends import registry
from convexport.runtime.backends.base import Backend
from convexport.runtime.backends.selection import create
from convexport.runtime.bundle import Bundle, open_bundle
from convexport.runtime.errors import BackendError, BundleError, DeviceError, UsageError
from convexport.runtime.options import Options


@dataclass(frozen=True)
class Opened:
    """An open bundle, its back end, the reason for that choice, and the process that opened them."""

    bundle: Bundle
    backend: Backend
    description: str
    process: int


class Holder:
    """Opens a bundle and its back end, again in each process that asks for them.

    Raises what `Classifier` documents.
    """

    def __init__(self, path: str | os.PathLike[str], options: Options) -> None:
        self.path = path
        self.options = options
        self.absolute = os.path.abspath(path)  # noqa: PTH100 - the child may have changed its folder
        self._lock = threading.Lock()
        self._closed = False
        self.last = _open(path, options)
        _HOLDERS.add(self)

    def current(self) -> Opened:
        """What is open in this process. Raises `DeviceError` in a forked process on a GPU."""
        if self.last.process != os.getpid():
            with self._lock:
                if self.last.process != os.getpid():
                    self.last = self._reopened(self.last)
        return self.last

    def close(self) -> None:
        """Frees what this process opened, and nothing that it inherited. Safe to call twice."""
        self._closed = True
        if self.last.process == os.getpid():
            self.last.backend.close()
            self.last.bundle.close()

    def _reopened(self, inherited: Opened) -> Opened:
        if self._closed:
            raise BackendError("the classifier is closed", "open it again")
        if isinstance(self.options.backend, Backend):  # only its maker can make another one
            return Opened(inherited.bundle, inherited.backend, inherited.description, os.getpid())
        if inherited.backend.device.kind == "cuda":
            raise DeviceError(
                f"{inherited.backend.device} cannot be used in a process forked from one that used it",
                "open the classifier in the child, or start the child with spawn",
            )
        opened = _open(self.absolute, self.options)
        if opened.bundle.manifest != inherited.bundle.manifest:
            opened.backend.close()
            opened.bundle.close()
            raise BundleError(f"{self.path}: the bundle was replaced by another one", "open it again")
        return opened

    def keep_for_ever(self) -> None:
        """In a forked child: keeps what was inherited from being freed, even when the child ends."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.last.backend))
        self._lock = threading.Lock()  # another thread of the parent may have held the old one


_HOLDERS: weakref.WeakSet[Holder] = weakref.WeakSet()


def _after_fork() -> None:
    for holder in list(_HOLDERS):
        holder.keep_for_ever()


os.register_at_fork(after_in_child=_after_fork)


def _open(path: str | os.PathLike[str], options: Options) -> Opened:
    given = options.backend if isinstance(options.backend, Backend) else None
    if given is not None:
        _check_given(given, options)
    elif options.backend != "auto":
        registry.find(str(options.backend))
    bundle = open_bundle(path)
    try:
        if options.language not in bundle.manifest.labels:
            raise UsageError.unknown("language", options.language, bundle.manifest.labels)
        bundle.check_labels()
        if given is not None:
            backend, description = given, f"{given.name} on {given.device}, as given"
        else:
            backend, description = create(bundle, options)
    except BaseException:  # also Ctrl-C: whatever ends the opening, nobody else can close the bundle
        bundle.close()
        raise
    return Opened(bundle, backend, description, os.getpid())


def _check_given(backend: Backend, options: Options) -> None:
    """Checks options against a given back end. Raises `UsageError` for options that it cannot follow."""
    asked = {"device": (options.device, str(backend.device)), "precision": (options.precision, backend.precision)}
    for name, (wanted, found) in asked.items():
        if wanted not in ("auto", found):
            raise UsageError(f"{name} {wanted}: the given back end uses {found}", f"leave {name} out")
    if options.threads is not None:
        raise UsageError(
            f"threads {options.threads}: the given back end already has its threads",
            "set its threads where you create it",
        )
