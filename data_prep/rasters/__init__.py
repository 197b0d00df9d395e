"""Georeferenced rasters and cubes: opening, places and ground distance, chips, dates, labels."""
