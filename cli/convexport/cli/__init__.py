"""argv -> one call -> text. One file a command: `parser()`, `run(options) -> exit code`."""
