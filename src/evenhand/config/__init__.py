"""Options: schemas, presets, and how overrides become a typed configuration."""

from evenhand.config.compose import compose, compose_yaml, list_presets
from evenhand.config.files import config_yaml, load_config, save_config
from evenhand.config.options import Option, list_options

__all__ = ["Option", "compose", "compose_yaml", "config_yaml", "list_options", "list_presets", "load_config", "save_config"]
