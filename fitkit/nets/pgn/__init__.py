"""PGN: pose from a position map, face from the same encoder. See README.md beside this file."""
