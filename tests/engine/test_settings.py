"""Settings: declaration, parsing, files. What is saved is read back the same; garbage is refused in words."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import settings_file
from engine.errors import NotFoundError, SettingsError
from engine.options import Option, Problem, check, parse
from engine.settings import (
    OPTIONS,
    Settings,
    find_option,
    merge,
    parse_assignments,
    to_tables,
)


def _values(option: Option) -> st.SearchStrategy[object]:
    if option.choices:
        return st.sampled_from(option.choices)
    if option.kind is bool:
        return st.booleans()
    if option.kind is int:
        return st.integers(int(option.minimum), int(option.maximum or option.minimum + 1000))
    if option.kind is float:
        return st.floats(option.minimum, option.maximum or 1e9, allow_nan=False)
    return st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=80)


@given(st.fixed_dictionaries({key: _values(option) for key, option in OPTIONS.items()}))
def test_what_is_saved_is_read_back_the_same(values):
    settings = Settings().with_values(values)
    tables = tomllib.loads(settings_file.dumps(settings))
    tables.pop("version")
    assert merge(Settings(), tables) == settings


@given(st.binary(max_size=300))
def test_a_garbage_file_is_refused_in_words(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("garbage") / "gptoss.toml"
    path.write_bytes(data)
    try:
        settings_file.load(path)
    except SettingsError as error:
        assert error.message and error.hint


@given(st.sampled_from(sorted(OPTIONS)), st.text(max_size=40))
def test_whatever_is_typed_becomes_a_legal_value_or_a_problem(key, text):
    result = parse(OPTIONS[key], text)
    if not isinstance(result, Problem):
        assert not isinstance(check(OPTIONS[key], result), Problem)


_assignment = st.builds("{}={}".format, st.sampled_from(sorted(OPTIONS)), st.text(max_size=20))


@given(st.lists(st.text(max_size=40) | _assignment, max_size=3))
def test_whatever_is_assigned_is_taken_or_refused_in_words(assignments):
    try:
        Settings().with_values(parse_assignments(assignments))
    except SettingsError as error:
        assert error.message and error.hint


def test_every_default_is_legal_and_explained():
    for option in OPTIONS.values():
        assert not isinstance(check(option, option.default), Problem), option.key
        assert option.help.endswith("."), option.key


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("training.iterations=1e3", 1000),
        ("training.iterations=1_000", 1000),
        ("training.iterations=10k", 10_000),
        ("launch.grace_s=10min", 600),
        ("training.learning_rate=3e-4", 3e-4),
        ("output.export=no", False),
        ("model.path=/a b/c=d", "/a b/c=d"),
    ],
)
def test_assignments_are_read_as_people_write_them(assignment, expected):
    assert list(parse_assignments([assignment]).values()) == [expected]


@pytest.mark.parametrize(
    ("assignment", "message", "hint"),
    [
        ("training.iteration=5", "there is no setting", "did you mean training.iterations?"),
        ("iterations=5", "there is no setting", "did you mean training.iterations?"),
        ("training.iterations", "is not key=value", "for example"),
        ("training.iterations=many", "'many' is not allowed", "type a whole number"),
        ("training.iterations=1.5", "'1.5' is not allowed", "type a whole number"),
        ("training.iterations=0", "0 is not allowed", "give 1 to"),
        ("model.name=gpt-oss-20", "'gpt-oss-20' is not allowed", "did you mean gpt-oss-20b?"),
        ("training.learning_rate=nan", "nan is not allowed", "finite"),
        ("model.path=a\nb", "is not allowed", "line breaks"),
    ],
)
def test_a_bad_assignment_names_value_limit_and_next_step(assignment, message, hint):
    with pytest.raises(SettingsError) as caught:
        parse_assignments([assignment])
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_every_bad_value_is_named_at_once():
    with pytest.raises(SettingsError) as caught:
        merge(Settings(), {"training": {"iterations": -1, "seed": "x"}, "modle": {}})
    for part in ("training.iterations", "training.seed", "modle"):
        assert part in caught.value.message


def test_a_huge_value_is_not_repeated_in_full():
    with pytest.raises(SettingsError) as caught:
        parse_assignments(["model.name=" + "x" * 10_000_000])
    assert len(caught.value.message) < 300


def test_layout_auto_is_a_legal_file_value():
    assert merge(Settings(), {"layout": "auto"}).layout.mode == "auto"


def test_only_changes_are_listed_against_a_base():
    changed = Settings().with_values({"training.seed": 7})
    assert to_tables(changed, since=Settings()) == {"training": {"seed": 7}}


def test_a_newer_or_missing_or_huge_file_is_refused(tmp_path):
    newer = tmp_path / "newer.toml"
    newer.write_text("version = 99\n")
    with pytest.raises(SettingsError, match="newer gptoss"):
        settings_file.load(newer)
    with pytest.raises(NotFoundError):
        settings_file.load(tmp_path / "absent.toml")
    with pytest.raises(SettingsError, match="cannot be read"):
        settings_file.load(tmp_path)
    huge = tmp_path / "huge.toml"
    huge.write_text("#" * 1_000_001)
    with pytest.raises(SettingsError, match="larger than"):
        settings_file.load(huge)


def test_a_file_that_would_take_long_is_refused_or_read_in_short(tmp_path):
    path = tmp_path / "gptoss.toml"
    path.write_text("a." * 5000 + "a = 1\n")
    with pytest.raises(SettingsError, match="more than 1,000 dots"):
        settings_file.load(path)
    path.write_text("[training]\n" + "".join(f"iteration{n} = 1\n" for n in range(200)))
    with pytest.raises(SettingsError) as caught:
        settings_file.load(path)
    assert caught.value.message.count("there is no such setting") == 200
    assert 0 < caught.value.message.count("did you mean") < 50


def test_find_option_names_the_nearest():
    with pytest.raises(SettingsError) as caught:
        find_option("training.learning_rat")
    assert "training.learning_rate" in caught.value.hint
