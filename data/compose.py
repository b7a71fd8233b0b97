"""From ``key=value`` words to a typed, checked config object (Hydra's compose, no side effects)."""

import difflib
import re
from collections.abc import Sequence
from typing import Any, TypeVar

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data.errors import ConfigError

C = TypeVar("C")


def compose(command: str, overrides: Sequence[str], config_class: type[C]) -> C:
    """Build ``config_class`` from ``configs/<command>.yaml`` and the user's overrides.

    The YAML names ``<command>_schema`` first in its ``defaults``; it holds every default. A class
    with a ``GROUPS`` attribute (``{group: {name: dataclass}}``) registers the schemas of its config
    groups as ``<group>/<name>_schema``. Raises :class:`ConfigError` with the key and the mend.
    """
    store = ConfigStore.instance()
    store.store(name=f"{command}_schema", node=config_class)
    for group, schemas in getattr(config_class, "GROUPS", {}).items():
        for name, schema in schemas.items():
            store.store(group=group, name=f"{name}_schema", node=schema)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("configs", version_base="1.3", job_name=command):
            config = hydra_compose(command, overrides=list(overrides))
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            example = " ".join(f"{key}=…" for key in missing)
            raise ConfigError(f"needs {example}; see shopreel {command} --help")
        result = OmegaConf.to_object(config)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(command, error)) from None
    except ValueError as error:
        raise ConfigError(str(error)) from None
    assert isinstance(result, config_class)
    return result


def _explain(command: str, error: Exception) -> str:
    cause = error.__cause__ or error
    text = str(cause).splitlines()[0] if str(cause) else str(error).splitlines()[0]
    key = re.search(r"Key '([^']+)' (?:is )?not in", str(cause)) or re.search(r"Key '([^']+)'", str(cause))
    full = getattr(cause, "full_key", None)
    if key and "not in" in str(cause):
        unknown = full or key.group(1)
        close = difflib.get_close_matches(unknown, _keys(command), n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"see shopreel {command} --help"
        return f"unknown key {unknown!r}; {hint}"
    where = f"{full}: " if full else ""
    return f"{where}{text}; see shopreel {command} --help"


def _keys(command: str) -> list[str]:
    with initialize_config_module("configs", version_base="1.3", job_name=command):
        config = hydra_compose(command)
    return list(_walk(config, ""))


def _walk(node: Any, prefix: str) -> list[str]:
    if not isinstance(node, DictConfig):
        return [prefix]
    names = []
    for key in node:
        name = f"{prefix}.{key}" if prefix else str(key)
        names.append(name)
        if not OmegaConf.is_missing(node, key):
            names += [inner for inner in _walk(node._get_node(key), name) if inner != name]
    return names
