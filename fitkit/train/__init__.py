"""Data, network and energies -> weights: one loop for all trainings."""
