"""From ``key=value`` words to a typed, checked config object (Hydra's compose, no side effects)."""

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data.errors import ConfigError

CONFIGS = "configs"
C = TypeVar("C")


def compose(command: str, overrides: Sequence[str], config_class: type[C]) -> C:
    """Build ``config_class`` from ``configs/<command>.yaml`` and the user's overrides.

    The YAML names ``<command>_schema`` first in its ``defaults``; it holds every default. A class
    with a ``GROUPS`` attribute (``{group: {name: dataclass}}``) registers the schemas of its config
    groups as ``<group>/<name>_schema``. Raises :class:`ConfigError` with the key and the mend.
    A word ``@FILE`` stands for the overrides in that file, see :func:`expand`.
    """
    words = [_override(command, word) for word in expand(overrides)]
    groups = tuple(getattr(config_class, "GROUPS", {}))
    chosen = [word for word in words if word.partition("=")[0] in groups]
    GlobalHydra.instance().clear()
    with _registered(command, config_class):
        try:
            with initialize_config_module(CONFIGS, version_base="1.3", job_name=command):
                config = hydra_compose(command, overrides=words)
            missing = sorted(OmegaConf.missing_keys(config))
            if missing:
                example = " ".join(f"{key}=…" for key in missing)
                raise ConfigError(f"needs {example}; {_see(command, chosen)}")
            for key in _strangers(config, ""):
                raise ConfigError(_unknown(command, chosen, key))
            result = OmegaConf.to_object(config)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(_explain(command, chosen, error)) from None
        except ValueError as error:
            raise ConfigError(str(error)) from None
    assert isinstance(result, config_class)
    return result


def expand(words: Sequence[str]) -> list[str]:
    """``words`` with every ``@FILE`` replaced by the overrides in it, a YAML list of ``key=value``."""
    found: list[str] = []
    for word in words:
        if not word.startswith("@"):
            found.append(word)
            continue
        try:
            lines = yaml.safe_load(Path(word[1:]).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"{word}: {getattr(error, 'strerror', None) or 'not a YAML file'}") from None
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            raise ConfigError(f"{word}: not a YAML list of key=value lines")
        found += lines
    return found


def text_word(key: str, text: str) -> str:
    """``key=text`` for a text that may hold anything: in quotes where Hydra's grammar might need them."""
    return f"{key}={text}" if re.fullmatch(r"[\w./-]+", text) else _quoted(key, text)


def _quoted(key: str, text: str) -> str:
    return f"{key}={QuotedString(text=text, quote=Quote.single).with_quotes()}"


@contextmanager
def _registered(command: str, config_class: type) -> Iterator[None]:
    """The command's schemas in Hydra's store, which is global: they are taken out again at the end."""
    store = ConfigStore.instance()
    schemas = [("", command, config_class)]
    for group, options in getattr(config_class, "GROUPS", {}).items():
        schemas += [(group, name, schema) for name, schema in options.items()]
    for group, name, schema in schemas:
        store.store(group=group or None, name=f"{name}_schema", node=schema)
    try:
        yield
    finally:
        for group, name, _ in schemas:
            folder = store.repo
            for part in group.split("/") if group else ():
                folder = folder[part]
            del folder[f"{name}_schema.yaml"]


def _override(command: str, word: str) -> str:
    """``word`` in Hydra's grammar: a text that only misses its quotes (``out=a (1)``) gets them."""
    if word in ("-m", "--multirun"):
        mend = "to train with several settings: shopreel sweep … 'key=choice(a,b)' (shopreel sweep --help)"
        raise ConfigError(f"{word}: Hydra's multirun is not for this command line; {mend}")
    match = re.fullmatch(r"([^=]+)=(.*)", word, flags=re.DOTALL)
    if word.startswith(("~", "-")) or match is None:
        raise ConfigError(f"{word!r} is not key=value; see shopreel {command} --help")
    key, value = match.groups()
    parser = OverridesParser.create()
    try:
        override = parser.parse_override(word)
    except HydraException:
        if value[:1] in ("[", "{", "'", '"'):
            mend = "a bracket or quote is not closed, or the shell has eaten the quotes inside"
            raise ConfigError(f"{word!r}: {mend}") from None
        return _quoted(key, value)
    if override.is_sweep_override():
        mend = f"write a list as {key}=[{value}], a text with commas as {key}='\"{value}\"'"
        if command == "train":
            mend += "; what tries several values is shopreel sweep"
        raise ConfigError(f"{word!r}: {mend}")
    return word


def _strangers(node: Any, prefix: str) -> Iterator[str]:
    """Keys that Hydra's ``+key=value`` has put where the dataclass has no such field."""
    if not isinstance(node, DictConfig) or node._is_none() or node._is_missing():
        return
    kind = OmegaConf.get_type(node)
    known = {field.name for field in fields(kind)} if kind and is_dataclass(kind) else None
    for key in map(str, node):
        name = f"{prefix}.{key}" if prefix else key
        if known is not None and key not in known:
            yield name
        else:
            yield from _strangers(node._get_node(key), name)


def _explain(command: str, chosen: list[str], error: Exception) -> str:
    cause = error.__cause__ or error
    text = str(cause).splitlines()[0] if str(cause) else str(error).splitlines()[0]
    key = re.search(r"Key '([^']+)' (?:is )?not in", str(cause)) or re.search(r"Key '([^']+)'", str(cause))
    full = getattr(cause, "full_key", None)
    if key and "not in" in str(cause):
        return _unknown(command, chosen, full or key.group(1))
    option = re.match(r"In '\w+': Could not find '(\w+)/(\w+)'", text)
    if option:
        return _no_option(command, *option.groups())
    if full and "is not a ListConfig" in text:
        text = f"a list is wanted, written {full}=[…]"
    where = f"{full}: " if full else ""
    return f"{where}{text}; {_see(command, chosen)}"


def _no_option(command: str, group: str, wanted: str) -> str:
    folder = resources.files(CONFIGS).joinpath(group)
    options = sorted(
        file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml")
    )
    close = difflib.get_close_matches(wanted, options, n=1)
    hint = f"did you mean {close[0]}?" if close else f"see shopreel {command} --help"
    return f"{group}={wanted} is not one of {', '.join(options)}; {hint}"


def _see(command: str, chosen: list[str]) -> str:
    return f"see shopreel {' '.join([command, *chosen])} --help"


def _unknown(command: str, chosen: list[str], key: str) -> str:
    close = difflib.get_close_matches(key, _keys(command, chosen), n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else _see(command, chosen)
    return f"unknown key {key!r}; {hint}"


def _keys(command: str, chosen: list[str]) -> list[str]:
    """All keys, those of the config groups that the user chose, or of the defaults where there is no such."""
    with initialize_config_module(CONFIGS, version_base="1.3", job_name=command):
        try:
            return list(_walk(hydra_compose(command, overrides=chosen), ""))
        except HydraException:
            return list(_walk(hydra_compose(command), ""))


def _walk(node: Any, prefix: str) -> Iterator[str]:
    """The dotted names of all keys; a section's own name comes before its keys."""
    if prefix:
        yield prefix
    if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
        for key in map(str, node):
            yield from _walk(node._get_node(key), f"{prefix}.{key}" if prefix else key)
