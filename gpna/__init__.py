"""GPNA: tokenizers for any geospatial modality, a Perceiver-IO backbone, task heads (arXiv 2211.02348)."""
