"""MVF-Net for any face model and any named views. See README.md beside this file."""
