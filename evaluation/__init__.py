"""The streaming-editing benchmark and its metrics."""
