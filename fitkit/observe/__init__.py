"""Photos -> `Observations`: crops, landmarks, optical flow, labels."""
