"""FitResult -> files: the result folder (`folder`), meshes, glTF, parameters, cameras, pictures. See
docs/results.md."""
