"""Face models: mean, bases, triangles, named landmarks; one loader for each format."""
