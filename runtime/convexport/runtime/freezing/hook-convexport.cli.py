"""PyInstaller's hook for `convexport.cli`: `classify` is imported by its name."""

hiddenimports = ["convexport.cli.classify"]
