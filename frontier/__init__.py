"""The engine of the suite, and the ViT/MAE family of the Frontier study (arXiv 2404.11706)."""

__version__ = "0.1.0"
