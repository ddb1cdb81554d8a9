"""MFNet: named views through one trunk; one shape, expression and jaw, and pose, camera and light of each
view."""
