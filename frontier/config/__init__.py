"""Typed run configuration."""

from frontier.config.load import Config, load_config, validate

__all__ = ["Config", "load_config", "validate"]
