"""Torch networks and the flow schedule, for export and training only."""
