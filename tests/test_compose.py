"""Overrides → typed config: quoting, unknown keys, wrong types, cross-field checks."""

from dataclasses import dataclass
from enum import Enum

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.compose import compose
from data.errors import ConfigError
from training.doctor import DoctorConfig, Format


def doctor(*overrides: str) -> DoctorConfig:
    return compose("doctor", overrides, DoctorConfig)


def message(*overrides: str) -> str:
    with pytest.raises(ConfigError) as refused:
        doctor(*overrides)
    return str(refused.value)


def test_defaults_come_from_the_yaml():
    config = doctor()
    assert (config.format, config.folder, config.min_free_gib) == (Format.text, ".", 5.0)


def test_overrides_are_converted_to_the_types_of_the_dataclass():
    config = doctor("format=json", "min_free_gib=3")
    assert config.format is Format.json
    assert isinstance(config.min_free_gib, float)


@pytest.mark.parametrize(
    "name", ["a b", "a (1)", "größe", "日本", "a=b", "it's", 'a"b', "50%#1", "[x] y", "a&b"]
)
def test_a_path_needs_no_second_quoting(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    assert doctor(f"folder={folder}").folder == str(folder)


@settings(max_examples=30)
@given(st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="$,"), min_size=1))
def test_any_text_after_a_slash_arrives_as_typed(text):
    typed = "/" + text.strip()
    assert f"folder={typed}:" in message(f"folder={typed}")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("nope=1", "unknown key 'nope'; see shopreel doctor --help"),
        ("foldr=x", "unknown key 'foldr'; did you mean folder?"),
        ("+nope=1", "unknown key 'nope'; see shopreel doctor --help"),
        ("nope.deeper=1", "unknown key 'nope'; see shopreel doctor --help"),
        (
            "format=xml",
            "format: Invalid value 'xml', expected one of [text, json]; see shopreel doctor --help",
        ),
        ("format=null", "format: field 'format' is not Optional; see shopreel doctor --help"),
        ("min_free_gib=lots", "min_free_gib: Value 'lots' of type 'str' could not be converted to Float"),
        ("min_free_gib=-1", "min_free_gib=-1.0: must not be negative"),
        ("folder", "'folder' is not key=value; see shopreel doctor --help"),
        ("~folder", "'~folder' is not key=value; see shopreel doctor --help"),
        ("--folder=x", "'--folder=x' is not key=value; see shopreel doctor --help"),
        ("folder=a,b", "'folder=a,b': write a list as folder=[a,b], a text with commas as folder='\"a,b\"'"),
        ("folder=[a", "'folder=[a': a bracket or quote is not closed"),
    ],
)
def test_a_mistake_names_the_key_and_the_mend(override, expected):
    text = message(override)
    assert expected in text
    assert "\n" not in text


class Colour(Enum):
    red = "red"


@dataclass(kw_only=True, slots=True)
class Inner:
    count: int
    weights: dict[str, float]

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"inner.count={self.count}: must be at least 1")


@dataclass(kw_only=True, slots=True)
class Outer:
    needed: str
    colour: Colour
    inner: Inner


@pytest.fixture
def nested(tmp_path, monkeypatch):
    """A command of its own, with a section, an enum and a required key, in a ``configs`` of its own."""
    package = tmp_path / "nested_configs"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "outer.yaml").write_text(
        "defaults: [outer_schema, _self_]\nneeded: ???\ncolour: red\n"
        "inner:\n  count: 1\n  weights: {click: 1.0}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("data.compose.CONFIGS", "nested_configs")
    return lambda *overrides: compose("outer", overrides, Outer)


def test_sections_compose(nested):
    config = nested("needed=x", "inner.count=3")
    assert config == Outer(needed="x", colour=Colour.red, inner=Inner(count=3, weights={"click": 1.0}))


def test_a_free_mapping_takes_new_keys_with_a_plus(nested):
    assert nested("needed=x", "+inner.weights.like=2").inner.weights == {"click": 1.0, "like": 2.0}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "needs needed=…; see shopreel outer --help"),
        (["needed=x", "inner.cuont=2"], "unknown key 'inner.cuont'; did you mean inner.count?"),
        (["needed=x", "+inner.cuont=2"], "unknown key 'inner.cuont'; did you mean inner.count?"),
        (["needed=x", "inner.count=0"], "inner.count=0: must be at least 1"),
        (["needed=x", "inner.count=many"], "inner.count: Value 'many' of type 'str'"),
        (["needed=x", "colour=blue"], "colour: Invalid value 'blue', expected one of [red]"),
        (["needed=x", "inner=3"], "inner"),
    ],
)
def test_mistakes_in_sections(nested, overrides, expected):
    with pytest.raises(ConfigError) as refused:
        nested(*overrides)
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_programming_error_is_not_blamed_on_the_user(nested, monkeypatch):
    def fail(self):
        raise AttributeError("our own")

    monkeypatch.setattr(Inner, "__post_init__", fail)
    with pytest.raises(AttributeError, match="our own"):
        nested("needed=x")


def test_a_file_stands_for_its_overrides_and_later_words_win(tmp_path):
    file = tmp_path / "best.yaml"
    file.write_text("# the best\n- format=json\n- min_free_gib=3\n")
    config = doctor(f"@{file}", "min_free_gib=4")
    assert (config.format, config.min_free_gib) == (Format.json, 4.0)
    assert doctor("min_free_gib=4", f"@{file}").min_free_gib == 3.0


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "No such file"),
        ("format: json", "not a YAML list of key=value"),
        ("- {", "not a YAML file"),
        ("- formt=json", "unknown key 'formt'; did you mean format?"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, content, expected):
    if content is not None:
        (tmp_path / "best.yaml").write_text(content)
    assert expected in message(f"@{tmp_path / 'best.yaml'}")
