"""The command table: ``shopreel COMMAND key=value …`` composes a typed config and runs one module."""

import difflib
import importlib
import os
import re
import sys
import textwrap
import traceback
from importlib import resources
from typing import Any, NamedTuple

from data.errors import ConfigError, ShopreelError


class Command(NamedTuple):
    """``module`` has ``CONFIG`` (a dataclass) and ``run(config)``; ``summary`` is one line of help.

    A module whose words are more than the keys of ``CONFIG`` has ``configure(words)`` to make what it runs.
    """

    module: str
    summary: str


COMMANDS = {
    "doctor": Command("training.doctor", "what is installed, which device, every problem with its mend"),
    "import": Command("data.importing", "raw logs → dataset directory"),
    "simulate": Command("data.simulate", "a shopping-video market with a known truth → dataset directory"),
    "prepare": Command("data.prepare", "dataset → labels, point-in-time histories, vocabularies, split"),
    "train": Command("training.train", "prepared data → a trained model and its checkpoints"),
    "sweep": Command("sweep", "many trainings in search of better settings → their table and the best"),
    "publish": Command("serving.publish", "runs → an immutable bundle; CURRENT moves to it"),
    "recommend": Command("serving.recommend", "bundle + dataset → top-k for every user, as a table"),
    "replay": Command("serving.replay", "held-out requests through the whole pipeline → tables"),
    "evaluate": Command("evaluation.cli", "tables → metrics with intervals, report.json, report.html"),
    "serve": Command("serving.server", "the ranking server over HTTP"),
    "demo": Command("demo", "all of the above on a simulated market, in minutes, then the feed page"),
}
USAGE = "usage: shopreel COMMAND [key=value …]      shopreel COMMAND --help"


def main(argv: list[str] | None = None) -> int:
    """Run one command. Exit code 0; 2 for the user's mistake, in one line; 1 for our own fault."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    name, *overrides = arguments
    try:
        if name not in COMMANDS:
            close = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(f"no command {name!r}{hint} ({USAGE})")
        if any(word in ("-h", "--help") for word in overrides):
            print(_help(name, overrides))
            return 0
        result = run_command(name, overrides)
        return result if isinstance(result, int) else 0
    except ShopreelError as error:
        print(f"shopreel {name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not package or package in sys.modules:  # a module of an installed package: our own slip
            return _our_fault(name)
        mend = "at the repository's root: python -m pip install -r requirements/cpu.txt (or an extra there)"
        print(f"shopreel {name}: the package {package} is not installed; {mend}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"shopreel {name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception:
        return _our_fault(name)


def _our_fault(name: str) -> int:
    traceback.print_exc()
    print(f"shopreel {name}: this is our fault, not yours; please report the lines above", file=sys.stderr)
    return 1


def run_command(name: str, overrides: list[str]) -> Any:
    """Compose the command's config from its YAML and ``overrides``, then run its module."""
    module = importlib.import_module(COMMANDS[name].module)
    from data.compose import compose

    if hasattr(module, "configure"):
        return module.run(module.configure(overrides))
    return module.run(compose(name, overrides, module.CONFIG))


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    order = "import | simulate → prepare → train → publish → replay → evaluate → serve"
    return "\n".join([USAGE, "", *lines, "", f"The usual order: {order}", "Start with: shopreel demo"])


def _help(name: str, overrides: list[str]) -> str:
    text, chosen = _without_defaults(f"{name}.yaml")
    legend = "Keys and their defaults (??? must be given); set any as key=value, nested ones as a.b=value:"
    parts = [f"shopreel {name}: {COMMANDS[name].summary}", "", legend, "", text]
    for group, default in chosen.items():
        options = sorted(
            file.name.removesuffix(".yaml")
            for file in resources.files("configs").joinpath(group).iterdir()
            if file.name.endswith(".yaml")
        )
        wanted = next((word.partition("=")[2] for word in overrides if word.startswith(f"{group}=")), default)
        if wanted not in options:
            raise ConfigError(f"{group}={wanted} is not one of {', '.join(options)}")
        keys = textwrap.indent(_without_defaults(f"{group}/{wanted}.yaml")[0], "  ")
        parts += ["", f"Keys of {group}={wanted}, to be set as {group}.key=value:", "", keys]
        others = [option for option in options if option != wanted]
        if others:
            example = f"shopreel {name} {group}={others[0]} --help"
            parts += ["", f"Instead of it, {group}= can be {', '.join(others)}; their keys: {example}"]
    return "\n".join(parts)


def _without_defaults(file: str) -> tuple[str, dict[str, str]]:
    """The text of a YAML file without its defaults list, and the choices of config groups in that list."""
    text = resources.files("configs").joinpath(file).read_text(encoding="utf-8")
    block = re.search(r"^defaults:\n(?:[ ]*- .*\n)+", text, flags=re.MULTILINE)
    if block is None:
        return text.strip(), {}
    groups = dict(re.findall(r"- ([\w/]+): *(\w+)", block[0]))
    return f"{text[: block.start()]}\n{text[block.end() :].lstrip()}".strip(), groups


if __name__ == "__main__":
    sys.exit(main())
