"""Overrides as typed on the command line -> a checked, typed configuration.

A configuration is built in this order, later wins: the schema's defaults, the presets chosen with ``data= model= method=
trainer=``, the ``experiment=``, a ``trainer=debug…`` (a look at an experiment), and single options such as
``trainer.max_epochs=20``. Presets are YAML files, those of the package and those of ``--config-dir``. Hydra composes them;
every message of it is reworded here into one line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, overload

from evenhand.config.card import CardConfig
from evenhand.config.editing import EditApplyConfig, EditHeadConfig, EditInspectConfig, EditMeasureConfig, EditTrainConfig, ServeConfig
from evenhand.config.methods import EVERY_METHOD
from evenhand.config.options import Option, list_options, nearest, section_names, strip_optional
from evenhand.config.parsing import check_value, parse_value
from evenhand.config.patch_methods import PatchMakeConfig
from evenhand.config.patching import PatchApplyConfig, PatchInspectConfig, PatchRevertConfig
from evenhand.config.schema import EvaluateConfig, ExportConfig, PredictConfig, TrainConfig
from evenhand.config.search import SearchConfig
from evenhand.errors import ConfigError

T = TypeVar("T")

PRESETS = Path(__file__).parent / "presets"
SCHEMAS: dict[str, type] = {
    "train": TrainConfig, "predict": PredictConfig, "evaluate": EvaluateConfig, "export": ExportConfig,
    "edit head": EditHeadConfig, "edit train": EditTrainConfig, "edit apply": EditApplyConfig, "edit inspect": EditInspectConfig,
    "edit measure": EditMeasureConfig, "serve": ServeConfig, "search": SearchConfig, "patch make": PatchMakeConfig,
    "patch apply": PatchApplyConfig, "patch revert": PatchRevertConfig, "patch inspect": PatchInspectConfig, "card": CardConfig,
}
GROUPS = ("data", "model", "method", "trainer")
"""Sections that presets can fill."""
SHORT = {"mask": "method.mask"}
"""Options of a method that have a short name: ``mask=FILE``."""
MODEL_FILE = re.compile(r"\.(pth?|pt|safetensors|bin|ckpt|npz|tar|pkl|onnx)$", re.IGNORECASE)


@dataclass
class _Request:
    """Overrides sorted by what they do."""

    choices: dict[str, str] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    named_weights: bool = False
    """``model=`` named weights, so that they say what the architecture is."""


@overload
def compose(schema: str, overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> Any: ...


@overload
def compose(schema: type[T], overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> T: ...


def compose(schema: str | type[T], overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> Any:
    """The configuration of one command from overrides, exactly as typed after it.

    Args:
        schema: ``"train"``, ``"predict"``, ``"evaluate"``, ``"export"``, or a dataclass of options.
        overrides: ``name=value`` each: ``data=DIR``, ``model=FILE``, ``method=group_dro``, ``trainer=gpu``,
            ``experiment=dne_finetune``, ``trainer.max_epochs=20``, ``seeds=0,1,2``.
        config_dir: a folder with presets of your own (``trainer/mine.yaml``, ``experiment/study.yaml``, …).

    Returns:
        An instance of the schema's dataclass, its ``method`` an instance of the chosen method's.

    Raises:
        ConfigError: an option or preset is unknown, of the wrong type, out of its range, missing or ambiguous; one line.

    Example:
        >>> config = compose("train", ["data.path=prepared", "method=group_dro", "seeds=0,1", "trainer.max_epochs=3"])
        >>> config.method.step_size, config.seeds, config.trainer.max_epochs
        (0.01, [0, 1], 3)
    """
    kind = schema_of(schema)
    config = _merged(kind, overrides, config_dir)
    missing = [name for name in _leaf_names(config) if _is_missing(config, name)]
    if missing:
        raise ConfigError(_missing_text(kind, missing))
    return to_dataclass(kind, config)


def compose_yaml(schema: str | type, overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> str:
    """The same configuration as YAML text; what must still be given shows as ``???`` (``--print-config``)."""
    from omegaconf import OmegaConf

    return str(OmegaConf.to_yaml(_merged(schema_of(schema), overrides, config_dir)))


def schema_of(schema: str | type) -> type:
    """The dataclass of a command's name; a dataclass is returned as it is."""
    if isinstance(schema, type):
        return schema
    if schema not in SCHEMAS:
        raise ConfigError(f"schema is {schema!r}, but must be one of: {', '.join(SCHEMAS)}")
    return SCHEMAS[schema]


def list_presets(group: str, config_dir: str | Path | None = None) -> list[str]:
    """The names that ``group=`` accepts: the package's, those of ``config_dir``, and for methods every registered one.

    Example:
        >>> "gpu" in list_presets("trainer"), "erm" in list_presets("method")
        (True, True)
    """
    folders = [PRESETS / group] + ([Path(config_dir) / group] if config_dir is not None else [])
    names = {file.stem for folder in folders for file in folder.glob("*.yaml")}
    return sorted(names | (set(EVERY_METHOD) if group == "method" else set()))


def groups_of(schema: type) -> tuple[str, ...]:
    """The preset groups of a schema, ``experiment`` last; empty for a schema without any."""
    found = tuple(name for name in section_names(schema) if name in GROUPS)
    return (*found, "experiment") if found else ()


def to_dataclass(kind: type, config: Any) -> Any:
    """A composed configuration as an instance of its dataclass, after its values were checked."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    method = OmegaConf.get_type(config.method) if "method" in section_names(kind) else None
    options = {option.name: option for option in list_options(kind, method=method)}
    try:
        problems = [check_value(OmegaConf.select(config, name), options[name]) for name in _leaf_names(config) if name in options]
    except OmegaConfBaseException as error:
        raise ConfigError(reworded(error, options)) from None
    found = [text for text in problems if text]
    if found:
        raise ConfigError(found[0] if len(found) == 1 else f"{len(found)} options have values that are not allowed", found[1:] and found)
    return OmegaConf.to_object(config)


def _merged(kind: type, overrides: Sequence[str], config_dir: str | Path | None) -> Any:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    _check_config_dir(config_dir)
    request = _sorted(kind, overrides, config_dir)
    config = _composed(kind, request.choices, config_dir) if groups_of(kind) else OmegaConf.structured(kind)
    if request.named_weights and "model.name" not in request.values and "model" not in request.choices:
        config.model.name = "auto"
    method = OmegaConf.get_type(config.method) if "method" in section_names(kind) else None
    options = {option.name: option for option in list_options(kind, method=method)}
    for name, text in request.values.items():
        option = _find(name, options, kind, request.choices.get("method"))
        try:
            OmegaConf.update(config, name, parse_value(text, option), merge=False)
        except OmegaConfBaseException as error:
            raise ConfigError(reworded(error, options)) from None
    if "model.drop_path" in request.values and "model.drop_path_optional" not in request.values:
        config.model.drop_path_optional = False  # what is typed is meant
    return config


def _sorted(kind: type, overrides: Sequence[str], config_dir: str | Path | None) -> _Request:
    request = _Request()
    groups = groups_of(kind)
    known = [option.name for option in list_options(kind)]
    for token in overrides:
        name, text = _split(token)
        name = SHORT.get(name, name) if "method" in groups else name
        if name not in groups:
            if name in section_names(kind):
                raise ConfigError(f"'{name}' is a section of options, not an option; set its options one by one, as {name}.NAME=VALUE")
            if name == "method.name":
                raise ConfigError(f"method.name is chosen with method={text}")
            if "." not in name and name not in known:
                raise ConfigError(f"unknown option '{name}'{nearest(name, [*groups, *known])}")
            request.values[name] = text
            continue
        for full, value in _choice(name, text, config_dir).items():
            (request.values if "." in full else request.choices)[full] = value
            request.named_weights |= full == "model.checkpoint"
    return request


def _split(token: str) -> tuple[str, str]:
    name, sign, text = token.partition("=")
    name = name.strip().lstrip("+")
    if not sign or not name:
        raise ConfigError(f"{token!r} is not an override; write NAME=VALUE, for example trainer.max_epochs=20")
    if name.startswith("~"):
        raise ConfigError(f"{token!r}: options cannot be deleted; set {name[1:]}=null where the option allows it")
    return name, text


def _choice(group: str, text: str, config_dir: str | Path | None) -> dict[str, str]:
    """What ``group=text`` means: a preset's name, a path, or (for ``model=``) a name for timm or a server's address."""
    if group == "model" and re.match(r"https?://", text):
        return {"model.url": text}
    presets = list_presets(group, config_dir)
    name = text[: -len(".yaml")] if text.endswith(".yaml") else text
    exists = bool(text) and group in ("data", "model") and Path(text).exists()
    if exists and name in presets:
        raise ConfigError(f"{group}={text} is ambiguous: a path of that name exists and a preset too; write ./{text} for the path")
    if exists:
        return {f"{group}.path" if group == "data" else "model.checkpoint": text}
    if name in presets:
        return {group: name}
    if group == "model" and re.fullmatch(r"(hf[-_]hub|hub):.+", text):
        return {"model.checkpoint": text}
    if group == "model" and re.fullmatch(r"\w+(\.\w+)?", text) and not MODEL_FILE.search(text):
        return {"model.name": text}
    if "," in text and group not in ("data", "model"):
        raise ConfigError(f"{group}={text} names several, but one run takes one {group}; start one run for each and compare them")
    what = {"data": "no such path and no preset", "model": "no such path, no preset and no timm model name"}.get(group, "no such preset")
    hint = nearest(name, presets) if text and "/" not in text else ""
    raise ConfigError(f"{group}={text}: {what}{hint or _listed(presets)}")


def _listed(presets: Sequence[str]) -> str:
    return f"; presets are: {', '.join(presets)}" if presets else ""


def _find(name: str, options: dict[str, Option], kind: type, method: str | None) -> Option:
    if name in options:
        return options[name]
    section, _, rest = name.rpartition(".")
    if section in options and str(strip_optional(options[section].hint)[0]).startswith("dict[") and rest:
        return Option(name, str, "", options[section].help)
    everywhere = {option.name for option in list_options(kind)}
    if name in everywhere:
        takers = [key for key, cls in EVERY_METHOD.items() if name in {option.name for option in list_options(cls, "method.")}]
        chosen = options["method.name"].default
        raise ConfigError(f"'{name}' is not an option of method={method or chosen}; it belongs to: {', '.join(takers)}")
    raise ConfigError(f"unknown option '{name}'{nearest(name, options)}")


def _check_config_dir(config_dir: str | Path | None) -> None:
    if config_dir is None:
        return
    if not Path(config_dir).is_dir():
        raise ConfigError(f"--config-dir {config_dir}: no such folder; it holds presets as GROUP/NAME.yaml")
    for group in (*GROUPS, "experiment"):
        names = {file.stem for file in (Path(config_dir) / group).glob("*.yaml")}
        twice = sorted(names & set(list_presets(group)))
        if twice:
            raise ConfigError(f"preset {group}/{twice[0]} exists in {config_dir} and in evenhand; give yours another name")


def _composed(kind: type, choices: dict[str, str], config_dir: str | Path | None) -> Any:
    import hydra
    import yaml
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    overrides = [f"{group}={name}" for group, name in choices.items()]
    if config_dir is not None:
        folder = Path(config_dir).resolve().as_posix().replace("'", "\\'")
        overrides.append(f"hydra.searchpath=['file://{folder}']")
    try:
        with _own_hydra(), hydra.initialize_config_dir(str(PRESETS), version_base="1.3"), _registered(kind, choices):
            config = hydra.compose("evenhand_root", overrides=overrides)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(reworded(error, {option.name: option for option in list_options(kind)})) from None
    OmegaConf.set_struct(config, True)
    return config


@contextmanager
def _own_hydra() -> Iterator[None]:
    """Hydra is one object a process: an application that uses it finds it as it was."""
    from hydra.core.global_hydra import GlobalHydra

    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().hydra = None
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = before


@contextmanager
def _registered(kind: type, choices: dict[str, str]) -> Iterator[None]:
    """The schemas in Hydra's store while composing; what others keep there is as before afterwards."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    before = store.repo
    store.repo = {name: node for name, node in before.items() if name.startswith(("hydra", "_dummy"))}
    # what is for a look at an experiment has to win over it
    groups = sorted(groups_of(kind), key=lambda group: group == "trainer" and choices.get(group, "").startswith("debug"))
    defaults: list[Any] = ["evenhand_schema", "_self_"]
    defaults += [{group: getattr(kind, "default_method", "linear_probe") if group == "method" else None} for group in groups]
    try:
        store.store(name="evenhand_schema", node=kind)
        store.store(name="evenhand_root", node={"defaults": defaults})
        if "method" in groups:
            for name, node in EVERY_METHOD.items():
                store.store(group="method", name=name, node=node)
        yield
    finally:
        store.repo = before


def reworded(error: Exception, options: dict[str, Option]) -> str:
    """One line in our words for an error of the configuration library."""
    text = str(error)
    place = re.search(r"In '([^']+)'", text)
    where = f"preset {place[1]}: " if place and not place[1].startswith("evenhand_") else ""
    key = re.search(r"full_key: (\S+)", text)
    name = key[1] if key else ""
    unknown = re.search(r"Key '([^']+)' (?:is )?not in", text)
    if unknown:
        return f"{where}unknown option '{name or unknown[1]}'{nearest(name or unknown[1], options)}"
    value = re.search(r"Value '(.*?)'(?: of type '\w+')? (?:could not be converted|is not a valid)", text, re.DOTALL)
    if value and name:
        kind = options[name].kind if name in options else "value of the right type"
        return f"{where}{name} is {value[1]!r}, but must be: {kind}"
    missing = re.search(r"Could not (?:find|load) '([^']+)'", text)
    if missing:
        group, _, preset = missing[1].rpartition("/")
        return f"{where}no preset '{preset}' of '{group}'{nearest(preset, list_presets(group)) or _listed(list_presets(group))}"
    interpolation = re.search(r"Interpolation (?:key )?'?(\S+?)'? ", text)
    if interpolation:
        return f"{where}{name or 'a value'} refers to '{interpolation[1]}', which is not an option"
    if "Merge error" in text:
        return f"{where}the preset cannot be read (it must hold NAME: VALUE pairs)"
    first = " ".join(line.strip() for line in text.splitlines()[:2] if not line.startswith("In '"))
    return f"{where}the preset cannot be read ({first})"


def _leaf_names(config: Any, prefix: str = "") -> list[str]:
    from omegaconf import DictConfig, OmegaConf

    names: list[str] = []
    for key in config:
        full = f"{prefix}{key}"
        if OmegaConf.is_missing(config, key) or not isinstance(config._get_node(key), DictConfig) or config[key] is None:
            names.append(full)
        else:
            names += _leaf_names(config[key], f"{full}.")
    return names


def _is_missing(config: Any, name: str) -> bool:
    from omegaconf import OmegaConf

    section, _, key = name.rpartition(".")
    node = OmegaConf.select(config, section) if section else config
    return bool(OmegaConf.is_missing(node, key))


def _missing_text(kind: type, missing: Sequence[str]) -> str:
    options = {option.name: option for option in list_options(kind)}
    typed = {"data.path": "data", "model.checkpoint": "model"} if groups_of(kind) else {}
    wanted = [f"{typed.get(name, name)}=… ({options[name].help})" for name in missing]
    return f"missing: {', '.join(wanted)}"
