"""How far off a face is: metrics, public protocols, benchmarks with known truth, tables."""
