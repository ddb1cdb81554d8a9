"""Pictures and truth of others, for trainings and evaluations: one file for each data set, its card in it."""
