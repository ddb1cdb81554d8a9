"""The network that starts fits: any number of photos in any order. See README.md beside this file."""
