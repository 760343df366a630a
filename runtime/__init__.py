"""Bundles to edited video: backends, caches, the streaming loop. Imports neither torch nor ONNX."""

from liveedit.runtime.mask_cache import MaskCachePolicy
from liveedit.runtime.pixel_format import PixelFormat
from liveedit.runtime.stream import EditedChunk, StreamEditor

__all__ = ["EditedChunk", "MaskCachePolicy", "PixelFormat", "StreamEditor"]
