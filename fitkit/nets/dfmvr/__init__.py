"""DF-MVR: named views fused by a U-Net with an encoder for each, and a RedNet."""
