"""The tree is what the documentation says: packages, configs with their launch lines, nothing private."""

import ast
import dataclasses
import importlib
import re
import subprocess
import sys
import typing
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf
from packaging.utils import canonicalize_name
from setuptools import find_packages
from setuptools.config.setupcfg import read_configuration

import shopreel

HOME = Path(shopreel.__file__).parent
ROOT_MODULES = ("shopreel", "demo", "sweep")
PACKAGES = ("data", "models", "training", "serving", "evaluation", "configs")


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=HOME, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [HOME / name for name in done.stdout.split("\0") if name and (HOME / name).is_file()]


def test_the_installed_packages_are_ours_and_never_the_tests():
    include = read_configuration(HOME / "setup.cfg")["options"]["packages"]
    assert {name.partition(".")[0] for name in include} == set(PACKAGES)
    folders = {name.replace(".", "/") for name in find_packages(str(HOME)) if not name.startswith("tests")}
    assert folders == {name.replace(".", "/") for name in include}


def test_every_folder_with_code_is_a_package():
    folders = {path.parent for name in PACKAGES for path in (HOME / name).rglob("*.py")}
    folders |= {path.parent for path in (HOME / "tests").rglob("*.py")}
    assert not [str(folder) for folder in folders if not (folder / "__init__.py").is_file()]


@pytest.mark.parametrize("name", shopreel.COMMANDS)
def test_every_command_has_a_config_whose_yaml_names_all_keys(name):
    module = importlib.import_module(shopreel.COMMANDS[name].module)
    assert callable(module.run)
    file = HOME / "configs" / f"{name}.yaml"
    lines = file.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith(f"# shopreel {name}"), "the launch line comes first"
    config = OmegaConf.load(file)
    assert isinstance(config, DictConfig)
    assert config.defaults[0] == f"{name}_schema"
    assert config.defaults[-1] == "_self_"
    groups = [key for entry in config.defaults if isinstance(entry, DictConfig) for key in entry]
    del config["defaults"]
    assert_same_keys(config, module.CONFIG, but=groups)


def assert_same_keys(config: DictConfig, kind: type, but: list[str]) -> None:
    types = typing.get_type_hints(kind)
    fields = {field.name: types[field.name] for field in dataclasses.fields(kind)}
    assert sorted(map(str, config)) == sorted(set(fields) - set(but))
    for key in config:
        if dataclasses.is_dataclass(fields[str(key)]):
            assert_same_keys(config[key], fields[str(key)], but=[])


GROUPS = sorted(str(path.relative_to(HOME / "configs")) for path in (HOME / "configs").glob("*/*.yaml"))


@pytest.mark.parametrize("name", GROUPS)
def test_every_file_of_a_config_group_names_all_keys_of_its_class(name):
    file = HOME / "configs" / name
    group, option = file.parent.name, file.stem
    users = [importlib.import_module(command.module).CONFIG for command in shopreel.COMMANDS.values()]
    kinds = [kind.GROUPS[group][option] for kind in users if group in getattr(kind, "GROUPS", {})]
    assert len(kinds) == 1
    assert file.read_text(encoding="utf-8").startswith("# shopreel ")
    config = OmegaConf.load(file)
    assert isinstance(config, DictConfig)
    assert list(config.pop("defaults")) == [f"{option}_schema", "_self_"]
    assert_same_keys(config, kinds[0], but=[])


@pytest.mark.parametrize("name", [*(f"{name}.yaml" for name in shopreel.COMMANDS), *GROUPS])
def test_every_key_is_explained(name):
    lines = (HOME / "configs" / name).read_text(encoding="utf-8").splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        if re.match(r"[a-z_]+: *\S", line) and not line.startswith(("defaults:", "name:")):
            assert "#" in line or before.startswith("#"), f"{name}: {line!r} has no comment"


def test_no_private_path_or_host_in_any_file():
    pattern = re.compile(
        rb"(?<![\w.~-])/(?:work|farm|root)/|/home/(?!me\b)\w+/|pypi\.org|files\.pythonhosted"
    )
    found = []
    for path in tracked():
        if path == Path(__file__):
            continue
        for number, line in enumerate(path.read_bytes().splitlines(), start=1):
            if pattern.search(line):
                found.append(f"{path.relative_to(HOME)}:{number}")
    assert not found


def test_no_file_is_large():
    assert not [str(path) for path in tracked() if path.stat().st_size > 1 << 20]


def test_nothing_is_pickled_or_evaluated():
    """Data from outside never becomes code; torch.load says weights_only, or is not used."""
    found = []
    for path in tracked():
        if path.suffix != ".py" or path.is_relative_to(HOME / "tests"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                found += [f"{path}:{node.lineno}" for name in names if name.partition(".")[0] == "pickle"]
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("eval", "exec", "torch.load"):
                safe = any(keyword.arg == "weights_only" for keyword in node.keywords)
                found += [] if safe else [f"{path}:{node.lineno}"]
    assert not found


@pytest.mark.parametrize("package", PACKAGES[:-1])
def test_modules_are_imported_by_name(package):
    """``import data`` would work from some folders and not from others; names say what is used."""
    found = []
    for path in (HOME / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found += [
                    f"{path}:{node.lineno}" for alias in node.names if alias.name.split(".")[0] in PACKAGES
                ]
            if isinstance(node, ast.ImportFrom) and node.level:
                found.append(f"{path}:{node.lineno}")
    assert not found


def test_everything_imported_is_a_direct_and_pinned_dependency():
    """No command may live off a package that is there only because another one, or the tests, needs it."""
    lists = ("spark", "traces")  # extras, imported only where they are asked for
    direct = set().union(*(requirement_names(f"{name}.in") for name in ("base", "cpu", *lists)))
    pinned = set().union(*(requirement_names(f"{name}.txt") for name in ("cpu", *lists)))
    files = [HOME / f"{name}.py" for name in ROOT_MODULES]
    files += [path for name in PACKAGES for path in (HOME / name).rglob("*.py")]
    imported: set[str] = set()
    for node in (node for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported.add(node.module.partition(".")[0])
    foreign = imported - set(sys.stdlib_module_names) - set(PACKAGES) - set(ROOT_MODULES)
    assert len(foreign) > 5
    distributions = packages_distributions()
    for name in sorted(foreign):
        owners = {canonicalize_name(owner) for owner in distributions.get(name, [name])}
        assert owners & direct, f"{name} is imported; requirements/base.in lacks {' or '.join(owners)}"
        assert owners & pinned, f"{name} is imported, but {' or '.join(owners)} is not pinned: make pin"


def requirement_names(file: str) -> set[str]:
    lines = (HOME / "requirements" / file).read_text(encoding="utf-8").splitlines()
    names = (re.match(r"[A-Za-z0-9._-]+", line) for line in lines if not line.startswith(("#", "-", ".")))
    return {canonicalize_name(name[0]) for name in names if name}
