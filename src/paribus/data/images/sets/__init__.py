"""Embedded sets of images: one file each; the file name is the name in the data settings."""
