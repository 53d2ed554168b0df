"""One user story for each station of the set-up, and what every field says to bad input."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from textual import events

from engine import presets
from engine.errors import EngineError
from engine.finetune_settings import GOALS
from engine.hardware.host import Disk
from engine.models import CATALOGUE
from engine.options import Option
from engine.plan.plan import Plan
from engine.preflight_facts import HubFacts
from engine.settings import OPTIONS, Settings
from gptoss_tui import data_panel, model_panel
from gptoss_tui.bridge import Services
from gptoss_tui.draft import Draft
from gptoss_tui.model_panel import ModelFacts, Needs
from gptoss_tui.screens.asking import AskScreen
from gptoss_tui.screens.choose import ChooseScreen
from gptoss_tui.screens.confirm import ConfirmScreen
from gptoss_tui.screens.presets import PresetsScreen
from gptoss_tui.screens.setup import SetupScreen
from gptoss_tui.stations import STATIONS
from gptoss_tui.widgets.alternatives import Alternatives
from gptoss_tui.widgets.choices import Choices
from gptoss_tui.widgets.field import Field, field_of
from gptoss_tui.widgets.length_field import LengthField
from gptoss_tui.widgets.station_panel import StationPanel
from tests.limits import LIMIT_S
from tests.tui.doubles import dgx, until
from tests.tui.test_setup import consequence, focus_option, focused_key, open_station


@pytest.fixture
def make_setup(make_app, services):
    def make(place: int = 1):
        services._machine = dgx()
        return make_app(lambda: SetupScreen(preset=services.presets()[place]))

    return make


def panel(app) -> str:
    return "\n".join(one.text for one in app.screen.query(StationPanel) if one.parent.display)


async def choose(pilot, app, word: str) -> None:
    """Walk through the words of the focused field."""
    assert isinstance(app.focused, Alternatives)
    for _ in range(10):
        if app.focused.value == word:
            return
        await pilot.press("right")
    raise AssertionError(word)


def test_what_this_host_has_says_nothing_about_a_machine_that_is_described(tmp_path, monkeypatch):
    file = tmp_path / "machine.toml"
    file.write_text("version = 1\n[host]\ndisk_free_gib = 27000.0\n[gpu]\nname = 'NVIDIA H100 80GB HBM3'\ncount = 8\n")
    services = Services()
    services.described = file
    machine = services.machine()
    settings = presets.find("20b-continue-8xh100").settings
    plan = services.plan(settings, machine)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    kinds = {finding.key.partition(".")[0] for finding in services.check(settings, plan, machine)}
    assert not kinds & {"disk", "packages", "hub"}
    facts = services.model_facts(settings, machine)
    assert facts.output.free_gib == 27_000


async def test_launch_an_advanced_field_that_is_needed_is_asked_for(make_setup):
    app = make_setup()
    async with app.run_test(size=(80, 24)) as pilot:
        await open_station(pilot, app, "launch")
        form = app.screen._form("launch")
        assert OPTIONS["launch.megatron_lm"].advanced
        assert "launch.megatron_lm" not in [field.option.key for field in form.fields]
        app.screen.draft.set("launch.route", "tutorial")
        app.screen._after_edit()
        await until(pilot, lambda: "launch.megatron_lm" in [field.option.key for field in form.fields])
        shown = [field.option.key for field in form.fields]
        assert shown == [option.key for option in form.station.options if option.key in shown]
        app.screen.draft.set("launch.route", "bridge")
        app.screen._after_edit()
        await until(pilot, lambda: "launch.megatron_lm" not in [field.option.key for field in form.fields])


# --- stories -----------------------------------------------------------------------------


async def test_machine_fewer_gpus_are_asked_for(make_setup):
    app = make_setup()
    async with app.run_test(size=(120, 36)) as pilot:
        await focus_option(pilot, app, "machine.gpus_per_node")
        await pilot.press("4", "enter")
        await until(pilot, lambda: focused_key(app) == "machine.nodes")
        assert app.screen.draft.settings.machine.gpus_per_node == 4
        assert "✓ Machine" in app.screen.query_one("#rail").text


async def test_model_what_is_downloaded_where_to_and_what_becomes_of_it(make_setup):
    app = make_setup()
    async with app.run_test(size=(120, 36)) as pilot:
        await open_station(pilot, app, "model")
        await until(pilot, lambda: "12.8 GiB" in panel(app))
        for part in ("openai/gpt-oss-20b", "✓ /cache/hub, 500 GiB free", "MXFP4", "20.9B parameters"):
            assert part in panel(app).replace("\n            ", " ")
        await choose(pilot, app, "tiny")
        await until(pilot, lambda: "nothing is downloaded" in panel(app))
        assert "MXFP4" not in panel(app)


async def test_model_what_is_told_goes_with_the_plan(make_setup, services, monkeypatch):
    app = make_setup()
    plan, is_let_go, asked = services.plan, threading.Event(), []

    def slow_plan(settings, machine, **options):
        if settings.model.name == "gpt-oss-120b":
            asked.append(settings)
            is_let_go.wait(LIMIT_S)
        return plan(settings, machine, **options)

    monkeypatch.setattr(services, "plan", slow_plan)
    async with app.run_test(size=(120, 36)) as pilot:
        await open_station(pilot, app, "model")
        await until(pilot, lambda: "20.9B parameters" in panel(app))
        (told,) = [one for one in app.screen.query(StationPanel) if one.parent.display]
        await choose(pilot, app, "gpt-oss-120b")
        await until(pilot, lambda: asked and told._facts is not None and told._facts.model.name == "gpt-oss-120b")
        assert "20.9B parameters" in panel(app)
        is_let_go.set()
        await until(pilot, lambda: "117B parameters" in panel(app))


async def test_training_what_is_no_value_changes_no_plan(make_setup, services, monkeypatch):
    app = make_setup()
    plan, planned = services.plan, []

    def counted(settings, machine, **options):
        planned.append(settings)
        return plan(settings, machine, **options)

    monkeypatch.setattr(services, "plan", counted)
    async with app.run_test(size=(120, 36)) as pilot:
        await focus_option(pilot, app, "training.iterations")
        await until(pilot, lambda: isinstance(app.screen.outcome, Plan) and not app.screen.is_asking("plan"))
        before = len(planned)
        await pilot.press("end", "x")
        await until(pilot, lambda: "✗ Training" in app.screen.query_one("#rail").text)
        assert "training.iterations" in consequence(app)
        await pilot.press("backspace")
        await until(pilot, lambda: "✗ Training" not in app.screen.query_one("#rail").text)
        assert "training.iterations" not in consequence(app)
        assert len(planned) == before
        await pilot.press("1")
        await until(pilot, lambda: len(planned) > before)


async def test_model_a_token_is_used_and_not_kept(make_setup, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    app = make_setup()
    async with app.run_test(size=(80, 24)) as pilot:
        await open_station(pilot, app, "model")
        await pilot.press("f4")
        await until(pilot, lambda: isinstance(app.screen, AskScreen) and app.focused)
        await pilot.press(*"hf_secret")
        assert "hf_secret" not in app.export_screenshot()
        await pilot.press("enter")
        await until(pilot, lambda: os.environ.get("HF_TOKEN") == "hf_secret")
        app.screen.draft.set("training.seed", "7")
        app.screen._after_edit()
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and b"hf_secret" in path.read_bytes()]
    assert not kept
    monkeypatch.delenv("HF_TOKEN", raising=False)


async def test_data_the_first_records_and_what_of_them_is_learnt(make_setup):
    app = make_setup()
    async with app.run_test(size=(120, 36)) as pilot:
        await open_station(pilot, app, "data")
        await until(pilot, lambda: "12 tokens, 2 of them learnt" in panel(app))
        (rows,) = [one.rows for one in app.screen.query(StationPanel) if one.parent.display]
        styles = {text: style for row in rows for text, style in row}
        assert (styles[" 4"], styles["user"]) == ("strong", "muted")


async def test_data_that_is_not_there_is_told_beside_it(make_setup):
    app = make_setup()
    async with app.run_test(size=(120, 36)) as pilot:
        await focus_option(pilot, app, "data.source")
        await choose(pilot, app, "text")
        await pilot.press("enter")
        await until(pilot, lambda: focused_key(app) == "data.path")
        await pilot.press(*"/nowhere")
        await until(pilot, lambda: "✗ there is no file /nowhere" in panel(app))
        assert "→ give a file" in panel(app)


@pytest.mark.parametrize(
    ("typed", "iterations"), [("2M tokens", 4), ("1280 samples", 10), ("3 epochs", 6), ("1e9 tokens", 1908)]
)
async def test_training_a_length_in_any_unit(make_setup, typed, iterations):
    app = make_setup()
    async with app.run_test(size=(80, 24)) as pilot:
        await open_station(pilot, app, "training")
        field = app.screen.query_one(LengthField)
        await until(pilot, lambda: field._data_tokens == 1e6)
        field.control.focus()
        await pilot.press(*typed)
        await until(pilot, lambda: app.screen.draft.settings.training.iterations == iterations)
        assert app.screen._form("training").fields[1].control.value == str(iterations)
        await pilot.press("escape", "u")
        await until(pilot, lambda: app.screen.draft.settings.training.iterations == 5000)


async def test_training_a_length_comes_back_as_it_was_typed(make_setup, make_app):
    app = make_setup()
    async with app.run_test(size=(80, 24)) as pilot:
        await open_station(pilot, app, "training")
        app.screen.query_one(LengthField).control.focus()
        await pilot.press(*"2M tokens!")
        await until(pilot, lambda: (kept := Draft.load()) and kept.length_text == "2M tokens!")
    again = make_app(SetupScreen)
    async with again.run_test(size=(80, 24)) as pilot:
        await open_station(pilot, again, "training")
        field = again.screen.query_one(LengthField)
        assert field.control.value == "2M tokens!"
        assert again.screen.draft.settings.training.iterations == 4
        again.screen._form("training").focus_option("training.iterations")
        await pilot.press("end", "2")
        await until(pilot, lambda: again.screen.draft.settings.training.iterations == 42)
        assert field.control.value == "2M tokens!"


async def test_training_the_length_follows_the_batch_and_says_what_it_cannot(make_setup):
    app = make_setup()
    async with app.run_test(size=(80, 24)) as pilot:
        await focus_option(pilot, app, "training.global_batch")
        note = app.screen.query_one(LengthField).query_one("Note")
        await until(pilot, lambda: "640,000 samples" in note.text)
        await pilot.press(*"256")
        await until(pilot, lambda: "1,280,000 samples" in note.text)
        app.screen.query_one(LengthField).control.focus()
        await pilot.press(*"5 h")
        await until(pilot, lambda: "predicts no speed" in note.text)
        assert app.screen.draft.settings.training.iterations == 5000


async def test_training_epochs_of_chats_follow_the_batch_and_spare_what_is_typed(make_app, tmp_path):
    file = tmp_path / "chats.jsonl"
    chat = {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}
    file.write_text(f"{json.dumps(chat)}\n" * 400)
    start = Settings().with_values(
        {"model.name": "tiny", "data.source": "chat", "data.path": str(file), "data.validation_percent": 50,
         "training.goal": "sft", "training.precision": "fp32", "training.global_batch": 10, "machine.device": "cpu"}
    )  # fmt: skip
    app = make_app(lambda: SetupScreen(start), services=Services())
    async with app.run_test(size=(120, 36)) as pilot:
        await open_station(pilot, app, "training")
        field = app.screen.query_one(LengthField)
        await until(pilot, lambda: field._data_tokens == 200 * start.training.sequence_length)
        field.control.focus()
        await pilot.press(*"3 epochs")
        training = lambda: app.screen.draft.settings.training  # noqa: E731
        await until(pilot, lambda: training().iterations == 60)
        assert app.screen.draft.settings.finetune.epochs == 3
        app.screen._form("training").focus_option("training.global_batch")
        await pilot.press(*"20")
        await until(pilot, lambda: (training().global_batch, training().iterations) == (20, 30))
        await until(pilot, lambda: "about 30 iterations" in " ".join(field.query_one("Note").text.split()))
        app.screen._form("training").focus_option("training.iterations")
        await pilot.press(*"7")
        await until(pilot, lambda: training().iterations == 7)
        await pilot.press("escape", "u", "u")  # from the list of stations letters stay keys
        await until(pilot, lambda: (training().global_batch, training().iterations) == (10, 60))
        assert app.focused.id == "rail"


async def test_training_only_what_matters_is_asked_for(make_setup):
    app = make_setup()
    async with app.run_test(size=(80, 24)) as pilot:
        await focus_option(pilot, app, "training.goal")
        form = app.screen._form("training")
        asked = lambda: {field.option.key for field in form.fields}  # noqa: E731
        assert not asked() & {"finetune.learn", "finetune.lora_rank"}
        for goal, expected in zip(GOALS, ({"finetune.learn"}, {"finetune.learn", "finetune.lora_rank"}), strict=True):
            await choose(pilot, app, goal)
            await until(pilot, lambda expected=expected: expected <= asked())


async def test_another_layout_is_taken_with_a_key_and_taken_back(make_setup, services):
    services.plan = Services().plan  # the real one: the double's knows no other layouts
    app = make_setup()
    async with app.run_test(size=(80, 24)) as pilot:
        screen = app.screen
        assert screen.check_action("layouts", ()) is False
        await open_station(pilot, app, "layout")
        before = screen.draft.settings
        await until(pilot, lambda: screen.check_action("layouts", ()))
        assert "Other layouts" in {command.title for command in app.get_system_commands(screen)}
        await pilot.press("f5")
        await until(pilot, lambda: isinstance(app.screen, ChooseScreen))
        told = app.screen.query_one(Choices).items[1].key
        await pilot.press("down", "enter")
        await until(pilot, lambda: screen.draft.settings.layout.mode == "manual")
        layout = screen.draft.settings.layout
        assert f"TP{layout.tp} PP{layout.pp}" in told
        await until(pilot, lambda: screen.outcome is not None and screen.outcome.layout.pp == layout.pp)
        await pilot.press("ctrl+z")
        assert screen.draft.settings == before


async def test_layout_by_hand(make_setup):
    app = make_setup()
    async with app.run_test(size=(120, 36)) as pilot:
        await focus_option(pilot, app, "layout.mode")
        await choose(pilot, app, "manual")
        await pilot.press("enter")
        await until(pilot, lambda: focused_key(app) == "layout.tp")
        await pilot.press("3")
        await until(pilot, lambda: "does not divide" in consequence(app))
        assert "✗ Layout" in app.screen.query_one("#rail").text


async def test_launch_another_launcher_asks_for_what_it_needs(make_setup):
    app = make_setup()
    async with app.run_test(size=(120, 36)) as pilot:
        await focus_option(pilot, app, "launch.launcher")
        await choose(pilot, app, "slurm")
        await until(pilot, lambda: "launch.partition" in [one.option.key for one in app.screen._form("launch").fields])


async def review_ready(pilot, app) -> None:
    await pilot.press("f8")
    await until(pilot, lambda: app.focused is not None and app.focused.id == "launch")
    await until(pilot, lambda: "gptoss.toml" in app.screen.query_one("#review-text").text)


async def test_review_copies_a_file(make_setup, tmp_path):
    app = make_setup(0)
    async with app.run_test(size=(120, 36)) as pilot:
        await review_ready(pilot, app)
        await pilot.press("c")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen) and app.focused)
        await pilot.press("right", "enter")
        await until(pilot, lambda: list(tmp_path.rglob("copied/distributed_config.env")))
        (kept,) = tmp_path.rglob("copied/distributed_config.env")
        assert app.clipboard == kept.read_text()
        assert "GPUS_PER_NODE=2" in app.clipboard


async def test_review_takes_a_preset_and_gives_the_values_back(make_setup):
    app = make_setup(0)
    async with app.run_test(size=(120, 36)) as pilot:
        await review_ready(pilot, app)
        await pilot.press("p")
        await until(pilot, lambda: isinstance(app.screen, PresetsScreen) and app.screen._presets)
        # What suits the machine comes first, as on the first screen.
        assert next(iter(app.screen._presets)) == "20b-8xh100"
        await until(pilot, lambda: "60 → 5000" in app.screen.query_one("#changes").text)
        await pilot.press("x")  # it is not the person's own
        assert isinstance(app.screen, PresetsScreen)
        await pilot.press("enter")
        await until(pilot, lambda: app.screen.draft.settings.training.iterations == 5000)
        await pilot.press("u")
        await until(pilot, lambda: app.screen.draft.settings.training.iterations == 60)


async def test_review_imports_an_env_file(make_setup, tmp_path):
    file = tmp_path / "my config.env"
    file.write_text("GPUS_PER_NODE=4\nNUM_NODES=2\nMASTER_ADDR=node-1\nMASTER_PORT=6000\nNODE_RANK=0\n")
    app = make_setup(0)
    async with app.run_test(size=(120, 36)) as pilot:
        await review_ready(pilot, app)
        await pilot.press("i")
        await until(pilot, lambda: isinstance(app.screen, AskScreen) and app.focused)
        app.focused.value = str(file)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen) and app.focused)
        told = str(app.screen.query_one("#text").render())
        assert "NUM_NODES=2 → machine.nodes" in told
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, SetupScreen))
        assert app.screen.draft.settings.machine.nodes == 2
        assert app.screen.draft.settings.training.iterations == 60  # the rest stays
        machine = lambda: app.screen.draft.settings.machine  # noqa: E731
        await pilot.press("u")
        await until(pilot, lambda: (machine().nodes, machine().gpus_per_node) == (1, 0))
        await pilot.press("ctrl+y")
        await until(pilot, lambda: (machine().nodes, machine().gpus_per_node) == (2, 4))


async def test_review_exports_scripts_and_names_what_it_wrote(make_setup, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    app = make_setup(0)
    async with app.run_test(size=(120, 36)) as pilot:
        await review_ready(pilot, app)
        await pilot.press("e")
        await until(pilot, lambda: isinstance(app.screen, AskScreen) and app.focused)
        line = app.focused
        line.value = str(tmp_path / "full")
        await pilot.press("enter")
        # What is refused stays to be mended, with the reason below it.
        await until(pilot, lambda: "✗" in app.screen.query_one("#note").text)
        assert "is not empty" in " ".join(app.screen.query_one("#note").text.split())
        assert isinstance(app.screen, AskScreen) and line.value == str(tmp_path / "full")
        line.value = str(tmp_path / "new scripts")
        await until(pilot, lambda: "✗" not in app.screen.query_one("#note").text)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen) and app.focused)
        assert "run.sh" in str(app.screen.query_one("#text").render())
        assert (tmp_path / "new scripts" / "run.sh").exists()


@pytest.mark.parametrize(
    ("key", "typed", "told"),
    [
        ("s", "no such name!", "'no such name!' cannot name a preset"),
        ("s", "taken", "there is a preset taken of yours already"),
        ("i", "/nowhere/x.env", "/nowhere/x.env"),
        ("i", "/tmp", "/tmp"),
        ("f4", "hf token", "has a space"),
    ],
)
async def test_a_refused_answer_stays_with_its_reason(make_app, key, typed, told):
    presets.save("taken", Settings())
    tiny = Settings().with_values({"model.name": "tiny", "data.source": "sample"})
    app = make_app(lambda: SetupScreen(tiny), services=Services())
    async with app.run_test(size=(120, 36)) as pilot:
        await review_ready(pilot, app)
        await pilot.press(key)
        await until(pilot, lambda: isinstance(app.screen, AskScreen) and app.focused)
        line = app.focused
        line.value = typed
        await pilot.press("enter")
        await until(pilot, lambda: "✗" in app.screen.query_one("#note").text)
        assert told in " ".join(app.screen.query_one("#note").text.split())
        assert isinstance(app.screen, AskScreen) and line.value == typed
        line.post_message(events.Paste("x" * 10_000_000))
        await until(pilot, lambda: "10,000,000" in app.screen.query_one("#note").text)
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, SetupScreen))


async def test_review_offers_a_rehearsal_and_keeps_the_draft(make_setup, services, monkeypatch):
    # The planner itself: a rehearsal is made from a plan for GPUs.
    monkeypatch.setattr(type(services), "plan", Services.plan)
    app = make_setup()
    async with app.run_test(size=(120, 36)) as pilot:
        await pilot.press("down")
        app.screen.draft.set("training.seed", "99")
        app.screen._after_edit()
        await review_ready(pilot, app)
        await pilot.press("b")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen) and app.focused)
        told = " ".join(str(app.screen.query_one("#text").render()).split())
        assert "gpt-oss-20b a tiny model of the same kind" in told
        await pilot.press("enter")
        await until(pilot, lambda: services.started)
        ((settings, _),) = services.started
        assert (settings.model.name, settings.machine.device, settings.training.seed) == ("tiny", "cpu", 99)
        kept = Draft.load()
        assert kept is not None and kept.settings.model.name == "gpt-oss-20b"


# --- what the model panel says ---------------------------------------------------------------


def told(needs: Needs | None = None, **changes: object) -> str:
    model = CATALOGUE["gpt-oss-20b"]
    hub = HubFacts(repository=model.published, cache=Disk(purpose="cache", path="/hub", free_gib=100.0))
    facts = {
        "model": model, "goal": "continue", "hub": hub, "download_gib": 12.8, "source": None, "checkpoint": None,
        "output": Disk(purpose="runs", path="/runs", free_gib=900.0), **changes,
    }  # fmt: skip
    lines = model_panel.rows(ModelFacts(**facts), needs or Needs(), 100)
    return "\n".join("".join(text for text, _ in row) for row in lines)


def hub(**changes: object) -> HubFacts:
    disk = {"free_gib": 100.0, "is_writable": True}
    disk |= {name: changes.pop(name) for name in disk if name in changes}
    cache = Disk(purpose="cache", path="/hub", **disk)
    return HubFacts(repository="openai/gpt-oss-20b", cache=cache, **changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"hub": hub(is_complete=True)}, "✓ openai/gpt-oss-20b, complete in the Hugging Face cache /hub"),
        ({"hub": hub(is_offline=True)}, "✗ openai/gpt-oss-20b is not in /hub and HF_HUB_OFFLINE is set"),
        ({"hub": hub(free_gib=5.0)}, "✗ /hub: 5 GiB free, 12.8 GiB needed"),
        ({"hub": hub(is_writable=False)}, "✗ /hub cannot be written"),
        ({"hub": hub(has_token=True)}, "found; it is never written anywhere"),
        ({"goal": "pretrain"}, "random ones"),
        ({"goal": "pretrain", "hub": hub(has_config=True)}, "✓ nothing: config and tokenizer are in the cache"),
        ({"goal": "pretrain", "hub": hub(is_offline=True)}, "✗ config and tokenizer"),
        ({"needs": Needs(disk_gib={"2 checkpoints": 1000.0})}, "✗ 1,000 GiB of 900 GiB free in /runs"),
        (
            {"needs": Needs(ram_gib={"converting": 80.0}, machine_ram_gib=64.0)},
            "✗ 80.0 GiB of 64.0 GiB at most, while converting",
        ),
    ],
)
def test_the_model_panel_names_what_stands_in_the_way(changes, expected):
    assert expected in told(**changes)


# --- bad input, field by field -----------------------------------------------------------------

TYPED = [option for option in OPTIONS.values() if not option.choices and option.kind is not bool]


def bad_texts(option: Option) -> list[str]:
    """What this field must refuse."""
    if option.kind is str:
        return ["a\nb", "tab\there", "\x1b[31m"]
    texts = ["", "word", "1e999", "nan", "/etc", "'1\"", "1 2"]
    if option.kind is int:
        texts.append("1.5")
    if option.maximum is not None:
        texts.append(str(option.maximum * 2 + 1))
    if option.minimum is not None:
        texts.append(str(option.minimum - 1))
    return texts


@pytest.mark.parametrize("option", TYPED, ids=lambda option: option.key)
def test_every_option_refuses_bad_input_in_words(option):
    draft = Draft()
    good = draft.settings.value(option.key)
    for text in bad_texts(option):
        problem = draft.set(option.key, text)
        assert problem is not None, text
        assert "is not allowed" in problem.message and problem.hint
        assert len(problem.message) < 250
        assert draft.settings.value(option.key) == good
        assert draft.text(option.key) == text


async def test_every_field_tells_bad_input_beside_itself_and_the_draft_survives(make_setup):
    """One program for all fields, those under Advanced too."""
    app = make_setup(0)
    async with app.run_test(size=(120, 36)) as pilot:
        await until(pilot, lambda: app.machine is not None)
        screen = app.screen
        screen.action_advanced()
        for station in STATIONS[:-1]:
            screen._go_to(station.key)
            await until(pilot, lambda key=station.key: screen._form(key)._has_fields)
            fields = [field for field in screen._form(station.key).query(Field) if field.option in TYPED]
            for field in fields:
                field.post_message(Field.Changed(field, bad_texts(field.option)[0]))
            await until(pilot, lambda f=fields: all("is not allowed" in " ".join(one.text.split()) for one in f))
            assert all(field.display and field.problem is not None for field in fields)
            await until(pilot, lambda title=station.title: f"✗ {title}" in screen.query_one("#rail").text)
        again = Draft.load()
        assert again is not None
        assert set(again.problems) == {option.key for option in TYPED}
        assert again.settings == screen.draft.settings == screen.draft.base


@pytest.mark.parametrize("key", [option.key for option in TYPED if option.is_path])
def test_paths_with_spaces_and_quotes_are_kept(key, tmp_path):
    draft = Draft()
    path = str(tmp_path / "a b" / 'it\'s "quoted" $(x) `y`')
    assert draft.set(key, path) is None
    draft.save()
    again = Draft.load()
    assert again is not None and again.settings.value(key) == path


@pytest.mark.parametrize("kind", ["directory", "unreadable", "missing", "binary"])
def test_data_that_cannot_be_read_is_a_failure_in_words(kind, tmp_path):
    path = tmp_path / 'it\'s "here"'
    if kind == "directory":
        path.mkdir()
    elif kind == "binary":
        path.write_bytes(bytes(range(256)) * 10)
    elif kind == "unreadable":
        path.symlink_to(path)
    settings = Settings().with_values({"data.source": "text", "data.path": str(path)})
    try:
        found = data_panel.read(settings)
    except EngineError as error:
        assert error.message and error.hint
    else:
        assert kind == "binary"
        assert all(len(row) for row in data_panel.rows(found, 60))


async def test_a_paste_of_ten_megabytes_is_left_out_and_said_so(make_setup):
    app = make_setup(1)
    async with app.run_test(size=(80, 24)) as pilot:
        await focus_option(pilot, app, "model.path")
        field = field_of(app.focused)
        app.focused.post_message(events.Paste("x" * 10_000_000))
        await until(pilot, lambda: "10,000,000 characters and was left out" in " ".join(field.text.split()))
        assert app.screen.draft.settings.model.path == ""
        await pilot.press("y")
        await until(pilot, lambda: app.screen.draft.settings.model.path == "y" and field.problem is None)


async def test_of_a_paste_with_several_lines_nothing_is_taken_and_a_last_line_break_does_not_count(make_setup):
    app = make_setup(1)
    async with app.run_test(size=(80, 24)) as pilot:
        await focus_option(pilot, app, "model.path")
        field = field_of(app.focused)
        app.focused.post_message(events.Paste("/first\n/second\r\n/third\n"))
        await until(pilot, lambda: "3 lines and was left out" in " ".join(field.text.split()))
        assert field.control.value == "" and app.screen.draft.settings.model.path == ""
        app.focused.post_message(events.Paste("\n/a b/'c'\n"))
        await until(pilot, lambda: app.screen.draft.settings.model.path == "/a b/'c'")
        assert field.problem is None


def test_the_file_of_the_draft_is_a_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    Path(tmp_path, "gptoss", "draft.json").mkdir(parents=True)
    assert Draft.load() is None
