"""How the models of each task are published, one file and one card a task."""
