"""Files -> arrays and back: images, landmark files, calibration, meshes, options, recipes, result folders."""
