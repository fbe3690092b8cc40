"""The smallest weights that have 8 bits in a file whose encoder has 8-bit activations.

It imports nothing, since converters read it in environments of their own.
"""

ENCODER = 33_000
"""Weights of an encoder with fewer elements stay in float: the stem, stage 0, depthwise kernels, and
projections of 160 x 160. With them in 8 bits too, all 8-bit weights take 10 dB more from the embedding.
"""
DECODER = 70_000
"""Weights of a mask decoder with fewer elements stay in float: its projections of 256 x 256 and smaller
cost more of the masks than they save. With seeded weights, in Core ML, they cost a worst mask IoU of
0.963 instead of 0.974, for 3 MB."""
COREML = 20_000
"""The same in Core ML, but for that decoder: the stem, depthwise kernels, norms."""
