"""Rasterizers, one file each: which triangle covers which pixel."""
