"""LiveEdit as ONNX bundles and TensorRT plans.

Tensor conventions, everywhere: video is NCTHW (batch, channels, frames, height, width) with
pixels in [0, 1] and RGB channel order; latents are NCTHW, already normalised per channel; tokens
are [batch, tokens, channels] in (frame, row, column) raster order.
"""

__version__ = "0.1.0"
