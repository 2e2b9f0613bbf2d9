"""A run: its description, its folder, its loop."""
