"""Aligned tiles of several sensors: the Web-Mercator grid, scenes, warping, the sample list, export and download."""
