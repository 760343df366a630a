"""Bundles to edited video: backends, caches, the streaming loop. Imports neither torch nor ONNX."""
