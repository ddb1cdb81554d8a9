"""Data files of fitkit; installed as the package fitkit.assets."""
