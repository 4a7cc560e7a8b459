"""Origins: one file for each kind of thing that an export can start from. Each returns a `Network`."""
