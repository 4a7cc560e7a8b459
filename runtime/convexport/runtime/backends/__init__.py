"""The back ends: their table (`registry`), the choice (`selection`) and the proof of the golden images (`proof`)."""
