"""The fit: a start, the stages of a recipe, and what is said of the face that they find -> `FitResult`."""
