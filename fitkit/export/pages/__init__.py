"""Pages for people: what a fit, or a batch of them, came to, as one HTML file that opens from the disk."""
