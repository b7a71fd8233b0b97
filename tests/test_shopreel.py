"""The command line: help, exit codes, one line for a mistake, commands from any folder."""

import subprocess
import sys
from pathlib import Path

import pytest

import shopreel
from data.errors import ContractError


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = shopreel.main(list(words))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_overview_names_every_command(capsys, words):
    code, out, err = run(capsys, *words)
    assert code == 0
    assert not err
    assert all(f"  {name} " in out for name in shopreel.COMMANDS)


@pytest.mark.parametrize("name", shopreel.COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_of_every_command_teaches_its_keys(capsys, name, flag):
    code, out, err = run(capsys, name, flag)
    assert code == 0
    assert not err
    assert f"# shopreel {name}" in out, "the launch line"
    assert "_schema" not in out
    assert "_self_" not in out


def test_help_shows_the_keys_of_the_chosen_config_group(capsys):
    _, out, _ = run(capsys, "train", "--help")
    assert "Keys of model=two_tower, to be set as model.key=value:" in out
    assert "  dim: " in out
    assert "ridge" not in out
    assert "Instead of it, model= can be ease, " in out
    _, out, _ = run(capsys, "train", "model=ease", "--help")
    assert "Keys of model=ease, to be set as model.key=value:" in out
    assert "  ridge: " in out
    code, _, err = run(capsys, "train", "model=magic", "--help")
    assert code == 2
    assert "model=magic is not one of ease, " in err


RANKER = ["train", "model=ranker", "prepared=x", "out=x"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["doctr"], "no command 'doctr'; did you mean doctor?"),
        (["xyzzy"], "no command 'xyzzy' (usage: "),
        (["doctor", "nonsense=1"], "unknown key 'nonsense'; see shopreel doctor --help"),
        (["doctor", "formt=json"], "unknown key 'formt'; did you mean format?"),
        (["doctor", "min_free_gib=-1"], "min_free_gib=-1.0: must not be negative"),
        (["simulate"], "needs out=…; see shopreel simulate --help"),
        (["train", "model=ranker", "out=x"], "needs prepared=…; see shopreel train model=ranker --help"),
        (
            ["train", "model=rankr"],
            "ease, ials, item_knn, popularity, ranker, two_tower; did you mean ranker?",
        ),
        (["train", "model=magic"], "two_tower; see shopreel train --help"),
        ([*RANKER, "model.value.tasks.clicks=1"], "did you mean model.value.tasks.click?"),
        ([*RANKER, "model.half_life_days=3"], "a list is wanted, written model.half_life_days=[…]"),
        ([*RANKER, "model.id_dropout=1"], "model.id_dropout=1.0 must lie in [0, 1)"),
        ([*RANKER, "model.order_weight=-1"], "model.order_weight=-1.0 must be at least 0"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, words, expected):
    code, out, err = run(capsys, *words)
    assert code == 2
    assert not out
    assert err.startswith(f"shopreel {words[0]}: ")
    assert err.count("\n") == 1
    assert expected in err


def test_a_message_of_several_lines_becomes_one(capsys, monkeypatch):
    def refuse(name, overrides):
        raise ContractError("events.parquet:\n  column user_id\n  is missing")

    monkeypatch.setattr(shopreel, "run_command", refuse)
    code, _, err = run(capsys, "prepare")
    assert (code, err) == (2, "shopreel prepare: events.parquet: column user_id is missing\n")


def test_our_own_fault_is_exit_code_1_with_a_traceback(capsys, monkeypatch):
    monkeypatch.setattr(shopreel, "run_command", lambda name, overrides: 1 // 0)
    code, _, err = run(capsys, "prepare")
    assert code == 1
    assert "ZeroDivisionError" in err
    assert "this is our fault" in err


def test_a_package_that_is_not_installed_is_named_with_its_mend(capsys, monkeypatch):
    def need(name, overrides):
        raise ModuleNotFoundError("No module named 'pyspark'", name="pyspark_of_nobody")

    monkeypatch.setattr(shopreel, "run_command", need)
    code, _, err = run(capsys, "import")
    assert code == 2
    assert err.count("\n") == 1
    assert "the package pyspark_of_nobody is not installed; at the repository's root: python -m pip" in err


def test_a_missing_module_of_our_own_is_our_fault(capsys, monkeypatch):
    command = shopreel.Command("data.no_such_module", "for this test")
    monkeypatch.setitem(shopreel.COMMANDS, "import", command)
    code, _, err = run(capsys, "import")
    assert code == 1
    assert "this is our fault" in err


def test_interrupted_is_exit_code_130(capsys, monkeypatch):
    def interrupt(name, overrides):
        raise KeyboardInterrupt

    monkeypatch.setattr(shopreel, "run_command", interrupt)
    assert run(capsys, "train")[0] == 130


@pytest.mark.parametrize(("result", "code"), [(3, 3), (None, 0), ("a value", 0)])
def test_a_command_that_returns_a_number_sets_the_exit_code(capsys, monkeypatch, result, code):
    monkeypatch.setattr(shopreel, "run_command", lambda name, overrides: result)
    assert run(capsys, "evaluate")[0] == code


def test_the_command_table_is_printed_without_importing_any_library():
    heavy = ("torch", "pyarrow", "hydra", "numpy", "duckdb", "faiss", "rich")
    code = f"import shopreel, sys; shopreel.main([]); sys.exit(any(name in sys.modules for name in {heavy}))"
    subprocess.run([sys.executable, "-c", code], cwd=Path(shopreel.__file__).parent, check=True)


def test_works_from_a_folder_that_has_a_folder_named_data(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "configs").mkdir()
    home = Path(shopreel.__file__).parent
    command = [sys.executable, "-m", "shopreel", "doctor", "folder=nowhere"]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(home)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "shopreel doctor: folder=nowhere: no such directory; name one that exists\n"
