"""The three training stages and their data."""
