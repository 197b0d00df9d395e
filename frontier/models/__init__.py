"""The ViT/MAE family: single-device maths, presets, initialisation and counts."""
