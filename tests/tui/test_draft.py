"""The draft behind the forms: texts, values, undo, and how it survives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.answers import missing
from engine.options import Problem, parse, text_of
from engine.settings import OPTIONS, Settings
from gptoss_tui.draft import Draft, draft_path, option_named_in
from gptoss_tui.stations import STATIONS, station_of


def test_a_value_becomes_a_setting_and_a_problem_leaves_the_last_one():
    draft = Draft()
    assert draft.set("training.iterations", " 250 ") is None
    problem = draft.set("training.iterations", "many")
    assert isinstance(problem, Problem)
    assert "many" in problem.message
    assert draft.settings.training.iterations == 250
    assert draft.text("training.iterations") == "many"
    assert draft.set("training.iterations", "300") is None
    assert not draft.problems


def test_letters_typed_together_are_one_step_back():
    draft = Draft()
    for text in ("1", "12", "123"):
        draft.set("training.iterations", text)
    draft.close_step()
    draft.set("training.seed", "7")
    assert draft.undo() == "training.seed"
    assert draft.undo() == "training.iterations"
    assert draft.settings.training.iterations == Settings().training.iterations
    assert draft.undo() is None
    assert draft.redo() == "training.iterations"
    assert draft.text("training.iterations") == "123"


def test_settings_taken_over_are_one_step_back():
    draft = Draft()
    draft.set("training.seed", "7")
    wanted = Settings().with_values({"training.iterations": 9, "model.name": "tiny", "training.seed": 7})
    assert draft.adopt(wanted) == 2
    assert draft.settings == wanted
    assert draft.adopt(wanted) == 0
    draft.undo()
    assert draft.settings == Settings().with_values({"training.seed": 7})
    draft.redo()
    assert draft.settings == wanted


def test_an_edit_ends_what_could_be_made_again():
    draft = Draft()
    draft.set("training.seed", "7")
    draft.undo()
    draft.set("training.iterations", "5")
    assert draft.redo() is None


def test_a_draft_comes_back_with_its_mistakes():
    draft = Draft(name="rehearsal")
    draft.set("training.iterations", "250")
    draft.set("training.global_batch", "lots")
    draft.save()
    again = Draft.load()
    assert again is not None
    assert again.name == "rehearsal"
    assert again.settings.training.iterations == 250
    assert again.text("training.global_batch") == "lots"
    assert list(again.problems) == ["training.global_batch"]
    Draft.forget()
    assert Draft.load() is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": 1}', '{"name": "x", "base": {"nope": 1}}', "\x00"])
def test_a_damaged_draft_is_none(text):
    draft_path().parent.mkdir(parents=True)
    draft_path().write_text(text)
    assert Draft.load() is None


@given(st.sampled_from(sorted(OPTIONS)), st.text(max_size=60))
def test_any_text_in_any_field_is_kept_or_named(key, text):
    draft = Draft()
    problem = draft.set(key, text)
    assert draft.text(key) == text
    assert (problem is None) == (key not in draft.problems)
    if problem is not None:
        assert problem.message
        assert draft.settings == Settings()


@pytest.mark.parametrize("key", sorted(OPTIONS))
def test_every_default_reads_back_as_itself(key):
    option = OPTIONS[key]
    assert parse(option, text_of(option.default)) == option.default


@pytest.mark.parametrize(("value", "text"), [(1e-5, "1e-5"), (0.003, "0.003"), (5.0, "5"), (True, "yes"), (12, "12")])
def test_values_read_as_people_type_them(value, text):
    assert text_of(value) == text


def test_what_others_depend_on_is_asked_for():
    assert missing(Settings()) == {}
    wanting = Settings().with_values({"data.source": "text", "model.name": "custom"})
    assert set(missing(wanting)) == {"data.path", "model.path"}


def test_every_option_has_exactly_one_station():
    asked = [option.key for station in STATIONS for option in station.options]
    assert sorted(asked) == sorted(OPTIONS)


def test_a_message_leads_to_the_option_it_names():
    option = option_named_in("machine.gpus_per_node = 9 and there are 8")
    assert option is not None and station_of(option).key == "machine"
    assert option_named_in("no space left") is None
