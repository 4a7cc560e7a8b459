"""The back ends: one module or folder each, one table of them (`registry`), and what chooses among them (`selection`)."""
