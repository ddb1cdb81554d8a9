"""`fitkit bench`: accuracy, ablation, robustness of starts, verdicts and speed, against known truth."""
