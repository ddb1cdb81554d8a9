"""Mathematics on tensors without state: rotations, normals, alignment, Laplacian, harmonics, colour."""
