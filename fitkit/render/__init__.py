"""Scene -> pictures: rasterizer, visibility, shading, texture."""
