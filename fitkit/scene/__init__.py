"""What is estimated: state, pose, camera, light; projection, and parameter files."""
