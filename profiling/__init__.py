"""Timing, traces, rooflines and records."""
