"""Archives of imagery, or generated scenes, into HDF5 shards.

A `Source` (source.py) lists its samples and loads any of them: folder.py reads folders of images, scenes.py generates
labelled multi-sensor scenes. plan.py fixes order, splits and shards before the first write; writer.py carries the
plan out, resumably and in parallel; shard_file.py writes, checks and records one shard; team.py spreads the work
over MPI ranks; inspect.py and bench.py answer questions. `frontier.data.shards` reads what is written here.
"""
