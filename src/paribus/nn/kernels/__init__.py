"""The six computations that all mixers reduce to."""
