"""PyInstaller's hook for `convexport.runtime`: what it imports late, and the version."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution

from convexport.runtime.freezing import imported_late

hiddenimports = imported_late()
try:
    distribution("convexport")
except PackageNotFoundError:  # a source tree
    datas = []
else:
    datas = import_module("PyInstaller.utils.hooks").copy_metadata("convexport")
