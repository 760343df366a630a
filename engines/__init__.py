"""Bundles to TensorRT plans: building, checking, inspection."""
