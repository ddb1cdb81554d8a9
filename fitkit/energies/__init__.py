"""Energies: one residual each, in standard deviations, named in recipes through `registry`; kernels, and the
objective that adds them up."""
