"""How each task is trained and judged, one file a task."""
