"""Least squares and first-order solvers; they know nothing about faces."""
