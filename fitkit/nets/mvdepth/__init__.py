"""Shu et al.: dense depth beside a face model, with a map of where colours can be compared. See README.md."""
