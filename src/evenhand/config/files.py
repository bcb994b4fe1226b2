"""A configuration as a YAML file, written atomically and read back to the same object."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from evenhand.config.compose import reworded, schema_of, to_dataclass
from evenhand.config.methods import EVERY_METHOD
from evenhand.config.options import list_options, nearest, section_names
from evenhand.errors import ConfigError
from evenhand.files import write_text

T = TypeVar("T")


def config_yaml(config: Any) -> str:
    """A configuration dataclass as YAML text."""
    from omegaconf import OmegaConf

    return str(OmegaConf.to_yaml(OmegaConf.structured(config)))


def save_config(config: Any, path: str | Path) -> None:
    """Write a configuration dataclass as YAML; `load_config` gives the same object back.

    Raises:
        DiskFullError: no space is left; nothing half-written stays behind.
    """
    write_text(path, config_yaml(config))


def load_config(path: str | Path, schema: str | type = "train") -> Any:
    """Read what `save_config` wrote.

    Args:
        path: the YAML file, for example ``RUN/config.yaml``.
        schema: the command it belongs to, or a dataclass.

    Raises:
        ConfigError: the file is missing, is not YAML, or does not fit the schema.
    """
    import yaml
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    kind = schema_of(schema)
    try:
        loaded = OmegaConf.load(path)
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as a configuration ({str(error).splitlines()[0]})") from None
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{path} is not a configuration: it must hold NAME: VALUE pairs")
    base = OmegaConf.structured(kind)
    options = {option.name: option for option in list_options(kind)}
    if "method" in section_names(kind):
        name = OmegaConf.select(loaded, "method.name")
        if name not in EVERY_METHOD:
            raise ConfigError(f"{path}: method.name is {name!r}{nearest(str(name), EVERY_METHOD)}")
        base.method = OmegaConf.structured(EVERY_METHOD[name])
    try:
        return to_dataclass(kind, OmegaConf.merge(base, loaded))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {reworded(error, options)}") from None
