"""argv -> one call -> text. One module for each command: `parser()`, `run(options) -> exit code`."""
