"""Torch networks to ONNX bundles: checkpoints, tracing, custom operators, quantisation."""
