"""Command lines of published systems -> ours: which of their options is which of ours, which do nothing, and why.

A system is a table (`evenhand.config.published_dne`, `…_fairtune`, `…_bmft`); reading a line, its launcher and
its options is done here once for all of them. `published_tables` writes the same tables as pages, so that pages and
translation cannot differ.
"""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from evenhand.config.compose import compose
from evenhand.config.options import nearest
from evenhand.errors import ConfigError

Fate = Literal["option", "no effect", "not needed", "refused"]
Values = Mapping[str, Any]

LAUNCHERS = ("torch.distributed.launch", "torch.distributed.run")
LAUNCH_FLAGS = ("use_env", "standalone")
LAUNCH_VALUES = ("nproc_per_node", "nnodes", "node_rank", "master_addr", "master_port", "rdzv_id", "rdzv_backend", "rdzv_endpoint",
                 "rdzv_conf", "max_restarts")


@dataclass(frozen=True)
class Call:
    """A published command line that was read.

    Attributes:
        values: every option of the script with its value, the published default where it was not typed.
        typed: the options that were typed.
        processes: processes over all nodes; published batch sizes are for each of them.
        released: True: as the released code runs; False: as the paper means it.
        data: our prepared data set, None = the usual name.
    """

    values: Values
    typed: frozenset[str]
    processes: int = 1
    released: bool = False
    data: str | None = None


@dataclass(frozen=True)
class PublishedOption:
    """One option of a published script.

    Attributes:
        name: without dashes, as the script spells it.
        kind: type of its value; bool is a flag.
        default: the script's default.
        ours: our options that it sets; empty where it sets none.
        to: (value, call) -> our options with their values; default: the value under the first name in ``ours``.
        fate: what becomes of it; "refused" only where its value is not the default.
        why: one clause, for every fate but "option", and where an option needs a word.
        unread: why the released code does not act on it although its paper or page names it; "" = it does.
        many: it takes several values.
        aliases: other spellings, with their dashes.
    """

    name: str
    kind: type = str
    default: Any = None
    ours: tuple[str, ...] = ()
    to: Callable[[Any, Call], Values] | None = None
    fate: Fate = "option"
    why: str = ""
    unread: str = ""
    many: bool = False
    aliases: tuple[str, ...] = ()

    def overrides(self, call: Call) -> Values:
        """Our options and their values; a value of None leaves ours as it is."""
        value = call.values[self.name]
        return self.to(value, call) if self.to else {self.ours[0]: value}


def mapped(
    name: str, kind: type, default: Any, *ours: str, to: Callable[[Any, Call], Values] | None = None, **more: Any
) -> PublishedOption:
    """An option that sets options of ours."""
    return PublishedOption(name, kind, default, ours, to, **more)


def unneeded(name: str, kind: type, default: Any, why: str, **more: Any) -> PublishedOption:
    """An option that nothing has to take the place of."""
    return PublishedOption(name, kind, default, fate="not needed", why=why, **more)


def without_effect(name: str, kind: type, default: Any, why: str = "nothing reads it", **more: Any) -> PublishedOption:
    """An option that changes nothing in the released code either."""
    return PublishedOption(name, kind, default, fate="no effect", why=why, **more)


def refused(name: str, kind: type, default: Any, why: str, **more: Any) -> PublishedOption:
    """An option whose value is refused where it is not the default."""
    return PublishedOption(name, kind, default, fate="refused", why=why, **more)


@dataclass(frozen=True)
class PublishedScript:
    """One script of a published system.

    Attributes:
        file: its name.
        does: what it is for, a few words.
        schema: the command of ours that takes its place.
        options: all options that it accepts.
        fixed: call -> what its text sets without an option, as our options; presets first.
        notes: what a reader of the translated command should know; None in place of a text: nothing.
        style: how its options are typed: "dashes", ``--name value``, or "hydra", ``name=value``.
    """

    file: str
    does: str
    schema: str
    options: tuple[PublishedOption, ...]
    fixed: Callable[[Call], Values]
    notes: Callable[[Call], tuple[str, ...]] = lambda call: ()
    style: Literal["dashes", "hydra"] = "dashes"

    def typed(self, name: str) -> str:
        """An option as it is typed."""
        return f"--{name}" if self.style == "dashes" else f"{name}="


@dataclass(frozen=True)
class PublishedSystem:
    """A published system: its repository, and its scripts in the order in which they are run."""

    name: str
    repository: str
    scripts: tuple[PublishedScript, ...]


@dataclass(frozen=True)
class Translation:
    """A published command line in our words.

    Attributes:
        command: what to type.
        schema: our command, as `evenhand.config.compose` takes it: "edit head", "edit train", "search", "patch make", "train".
        overrides: its options.
        notes: what was left out and why, and what else to know.
    """

    command: str
    schema: str
    overrides: tuple[str, ...]
    notes: tuple[str, ...]


def systems() -> tuple[PublishedSystem, ...]:
    """The published systems whose commands are understood."""
    from evenhand.config.published_bmft import BMFT
    from evenhand.config.published_dne import DNE
    from evenhand.config.published_fairtune import FAIRTUNE

    return DNE, FAIRTUNE, BMFT


def translate(line: str, *, released: bool = False, data: str | None = None) -> Translation:
    """Our command for a published one.

    Published defaults that differ from ours are written out, so that the line means what it meant.

    Args:
        line: as typed: environment variables, ``python -m torch.distributed.launch`` or ``torchrun``, the script and its
            options, also over several lines that end in a backslash.
        released: reproduce what the released code does, defects included, in place of what the paper says.
        data: the prepared data set; default: a name made from the line.

    Returns:
        The translation; its overrides compose without error.

    Raises:
        ConfigError: the line cannot be read, or names a script, option or value that is not known or has no counterpart.

    Example:
        >>> done = translate("python train_dne.py --epochs 25 --model vit_base_patch16 --dataset chexpert --disease Edema")
        >>> done.schema, "method.epochs=25" in done.overrides, "data.labels=Edema" in done.overrides
        ('edit train', True, True)
    """
    environment, launch, processes, name, words = _read_line(line)
    script = _script_named(name)
    typed = _read_options(words, script)
    values = {option.name: option.default for option in script.options} | typed
    call = Call(values, frozenset(typed), processes, released, data)
    overrides = _overrides(script, call)
    torchrun = ["torchrun", *launch, "-m", "evenhand"] if processes > 1 else ["evenhand"]
    command = " ".join([*map(_shell, environment), shlex.join([*torchrun, *script.schema.split(), *overrides])])
    return Translation(command, script.schema, tuple(overrides), (*script.notes(call), *_notes(script, call)))


def published_tables(system: PublishedSystem) -> str:
    """Every option of every script as Markdown tables; what several scripts share stands in one table at the end."""
    lines: list[str] = []
    files: dict[PublishedOption, list[str]] = {}
    by_file = {script.file: script for script in system.scripts}
    for script in system.scripts:
        for option in script.options:
            files.setdefault(option, []).append(script.file)
    for script in system.scripts:
        nothing = Call({option.name: option.default for option in script.options}, frozenset())
        lines += [f"### `{script.file}` -> `evenhand {script.schema}`", ""]
        lines += [f"{script.does[:1].upper()}{script.does[1:]}. Set without an option:", ""]
        lines += ["```text", *_wrapped(_written(script.fixed(nothing))), "```", ""]
        lines += _table((option for option in script.options if len(files[option]) == 1), script)
    for among in dict.fromkeys(tuple(names) for names in files.values() if len(names) > 1):
        lines += [f"### Options of {' and '.join(f'`{file}`' for file in among)}", ""]
        lines += _table((option for option, names in files.items() if tuple(names) == among), by_file[among[0]])
    return "\n".join(lines).rstrip() + "\n"


def _table(options: Iterable[PublishedOption], script: PublishedScript) -> list[str]:
    """Markdown rows; options without a counterpart that share their reason share a row."""
    rows: dict[tuple[str, str, str], list[PublishedOption]] = {}
    for option in options:
        ours = ", ".join(f"`{name}`" for name in option.ours) if option.fate == "option" else option.fate
        remark = "; ".join(text for text in (option.why, option.unread and f"released code: {option.unread}") if text)
        rows.setdefault((ours, remark, option.name if option.fate == "option" else ""), []).append(option)
    names = [", ".join(_with_default(option, script) for option in found) for found in rows.values()]
    cells = [f"| {name} | {ours} | {remark} |" for name, (ours, remark, _) in zip(names, rows, strict=True)]
    return ["| published (default) | ours | remark |", "|---|---|---|", *cells, ""] if cells else []


def _with_default(option: PublishedOption, script: PublishedScript) -> str:
    default = {None: "none", "": "empty"}.get(option.default, str(option.default))
    name = ", ".join(f"`{spelling}`" for spelling in (script.typed(option.name), *option.aliases))
    return name if option.kind is bool else f"{name} ({default})"


def _wrapped(words: Sequence[str], width: int = 118) -> Iterator[str]:
    line = ""
    for word in map(shlex.quote, words):
        if line and len(line) + 1 + len(word) > width:
            yield line
            line = ""
        line = f"{line} {word}".strip()
    yield line


def _read_line(line: str) -> tuple[list[str], list[str], int, str, list[str]]:
    """(environment, torchrun's options, processes, script, the script's words)."""
    text = re.sub(r"\\[ \t]*\r?\n", " ", line).strip().removeprefix("$").removeprefix("!").strip()
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"the line cannot be read ({str(error).lower()}); paste it as it would be typed in a shell") from None
    environment: list[str] = []
    while words and re.fullmatch(r"[A-Za-z_]\w*=.*", words[0], re.DOTALL):
        environment.append(words.pop(0))
    if words and re.fullmatch(r"(.*/)?python[\d.]*", words[0]):
        words.pop(0)
        if words[:1] == ["-u"]:
            words.pop(0)
        if words[:1] == ["-m"]:
            if len(words) < 2 or words[1] not in LAUNCHERS:
                raise ConfigError(f"python -m {' '.join(words[1:2])} is no launcher that is known; known are: {', '.join(LAUNCHERS)}")
            words = words[2:]
    elif words and PurePosixPath(words[0]).name == "torchrun":
        words.pop(0)
    launch: list[str] = []
    processes = 1
    while words and words[0].startswith("-"):
        name, sign, value = words.pop(0).lstrip("-").partition("=")
        name = name.replace("-", "_")
        if name in LAUNCH_FLAGS:
            launch += ["--standalone"] if name == "standalone" else []
            continue
        if name not in LAUNCH_VALUES:
            raise ConfigError(f"--{name} is no option of the launcher{nearest(name, [*LAUNCH_FLAGS, *LAUNCH_VALUES])}")
        if not sign:
            value = words.pop(0) if words else ""
        launch.append(f"--{name}={value}")
        if name in ("nproc_per_node", "nnodes"):
            if not re.fullmatch(r"[1-9]\d*", value):
                raise ConfigError(f"--{name} is {value!r}, but must be a number here: published batch sizes are for each process")
            processes *= int(value)
    if not words:
        raise ConfigError("the line names no script; paste the whole published command, as python train_dne.py --epochs 25")
    return environment, launch, processes, words[0], words[1:]


def _script_named(word: str) -> PublishedScript:
    known = {script.file: script for system in systems() for script in system.scripts}
    name = PurePosixPath(word).name
    file = name if name.endswith(".py") else f"{name.rstrip('.')}.py"
    if file not in known:
        raise ConfigError(f"'{name}' is no published script that is known{nearest(file, known)}; known are: {', '.join(known)}")
    return known[file]


def _read_hydra(words: Sequence[str], script: PublishedScript) -> dict[str, Any]:
    """Options typed as ``name=value``."""
    known = {option.name: option for option in script.options}
    found: dict[str, Any] = {}
    for word in words:
        name, sign, value = word.lstrip("+").partition("=")
        if not sign:
            raise ConfigError(f"{word!r} is no option of {script.file}; write NAME=VALUE, for example trainer.max_epochs=20")
        if name not in known:
            raise ConfigError(f"{name}= is no option of {script.file} that is known{nearest(name, known)}")
        found[name] = _typed(value, known[name])
    return found


def _read_options(words: Sequence[str], script: PublishedScript) -> dict[str, Any]:
    if script.style == "hydra":
        return _read_hydra(words, script)
    known = {option.name: option for option in script.options}
    spelled = {alias: option for option in script.options for alias in (f"--{option.name}", *option.aliases)}
    left = list(words)
    found: dict[str, Any] = {}
    while left:
        word = left.pop(0)
        typed, sign, value = word.partition("=")
        if not word.startswith("--") and typed not in spelled:
            raise ConfigError(f"{word!r} is no option of {script.file}; options start with two dashes")
        if typed not in spelled:
            raise ConfigError(f"{typed} is no option of {script.file}{nearest(typed[2:], known) or '; it takes none' * (not known)}")
        option = spelled[typed]
        name = option.name
        if option.kind is bool:
            found[name] = True
            continue
        texts = [value] if sign else left[:1]
        if not texts or (not sign and (texts[0].startswith("--") or texts[0] in spelled)):
            raise ConfigError(f"--{name} needs a value; write --{name} VALUE")
        if not sign:
            left.pop(0)
        while option.many and left and not left[0].startswith("--"):
            texts.append(left.pop(0))
        parsed = [_typed(text, option) for text in texts]
        found[name] = parsed if option.many else parsed[0]
    return found


def _typed(text: str, option: PublishedOption) -> Any:
    if re.fullmatch(r"\[[\w-]+\]|<[\w-]+>", text):
        raise ConfigError(f"--{option.name} is {text!r}, a placeholder of the published page; write your value in its place")
    try:
        return option.kind(text)
    except ValueError:
        what = {int: "a whole number", float: "a number"}[option.kind]
        raise ConfigError(f"--{option.name} is {text!r}, but must be {what}") from None


def _overrides(script: PublishedScript, call: Call) -> list[str]:
    """The command's options; published defaults only where ours differ."""
    fixed = dict(script.fixed(call))
    base = _composed(script.schema, tuple(_written(fixed)))
    chosen: dict[str, Any] = {}
    for option in script.options:
        if option.fate == "refused" and call.values[option.name] != option.default:
            raise ConfigError(f"{script.typed(option.name).rstrip('=')}={call.values[option.name]} has no counterpart: {option.why}")
        if option.fate != "option" or (call.released and option.unread):
            continue
        for name, value in option.overrides(call).items():
            if value is not None and (option.name in call.typed or value != _value_at(base, name)):
                chosen[name] = value
    return _written(fixed | chosen)


@functools.cache
def _composed(schema: str, overrides: tuple[str, ...]) -> Any:
    return compose(schema, overrides)


def _value_at(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = config.get(part) if isinstance(config, dict) else getattr(config, part)
    return config


def _written(values: Values) -> list[str]:
    return [f"{name}={_text(value)}" for name, value in values.items()]


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(map(_text, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _notes(script: PublishedScript, call: Call) -> Iterator[str]:
    for option in script.options:
        if option.name not in call.typed:
            continue
        if option.unread:
            does = "it is left out here too" if call.released else "it is used here; --released leaves it out"
            yield f"{script.typed(option.name)}: the released code does not act on it ({option.unread}); {does}"
        elif option.fate != "option":
            yield f"{script.typed(option.name)}: {option.fate}, {option.why.replace('`', '')}"


def _shell(word: str) -> str:
    name, _, value = word.partition("=")
    return f"{name}={shlex.quote(value)}"
