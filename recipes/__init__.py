"""Recipe files of fitkit; installed as the package fitkit.recipes."""
