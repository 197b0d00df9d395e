"""Archives of imagery, or generated scenes, into HDF5 shards."""
