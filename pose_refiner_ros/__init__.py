"""Refined 6-DoF poses of known objects from camera images and instance masks."""

__version__ = "0.1.0"
