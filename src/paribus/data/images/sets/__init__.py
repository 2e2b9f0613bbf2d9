"""Embedded sets of images, one file each; the file's name is the set's."""
