"""The face parser: which part of a head each pixel shows."""
