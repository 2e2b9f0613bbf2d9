"""Files that are copied into published folders as they are."""
