"""Names that the command line offers before anything heavy is imported."""

BUILT_IN = ("none", "gzip", "lzf")
PLUGGED = ("bitshuffle-lz4", "blosc2-zstd", "zstd")
CODECS = (*BUILT_IN, *PLUGGED)
"""Compressions of a shard; the plugged ones need hdf5plugin."""
