"""The rules for newer versions of formats, and frozen readers of older versions."""
