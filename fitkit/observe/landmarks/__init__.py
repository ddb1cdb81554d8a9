"""The 68 points of faces: detectors behind one interface, and checks of points that are given."""
