"""The back ends: the table (`registry`), what chooses among them (`selection`), what proves them (`proof`)."""
