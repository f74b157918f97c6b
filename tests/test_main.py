"""The command lecture6, in this process; test_studies.py runs it as processes and kills it."""

import dataclasses
import subprocess
import sys
from importlib import metadata

import pytest
from click.testing import CliRunner
from toy_study import study as toy

from lecture6.__main__ import main
from lecture6.studies import STUDIES, results

SMOKE = ("--profile", "smoke")


@pytest.fixture
def lecture6(tmp_path, monkeypatch):
    """Runs the command with the toy study in Keskar's place; returns its exit code and output."""
    monkeypatch.setitem(STUDIES, "keskar", toy(tmp_path / "log", n=3))
    monkeypatch.setenv("LECTURE6_STUDIES", str(tmp_path / "kept"))
    monkeypatch.delenv("LECTURE6_PROFILE", raising=False)
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")

    def command(*words):
        done = CliRunner().invoke(main, [str(word) for word in words])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.output

    return command


def test_a_study_from_plan_to_results(lecture6, tmp_path):
    code, output = lecture6("list")
    assert code == 0
    assert "toy: nothing" in output
    assert "smoke      3 trials, about 3 s" in output
    assert "stored results: none" in output
    code, output = lecture6("run", "keskar", "--profile", "smoke", "--dry-run")
    assert code == 0
    assert "3 trials, 0 finished, 3 to run, about 3 s" in output
    assert output.count("     1 s  i ") == 3
    assert not (tmp_path / "log").exists(), "a dry run computes nothing"

    code, output = lecture6("run", "keskar", "--profile", "smoke")
    assert code == 0
    assert "3 trials finished, 0 failed" in output
    assert "finished  i 2" in lecture6("run", "keskar", "--profile", "smoke", "--dry-run")[1]
    code, output = lecture6("collect", "keskar", "--profile", "smoke", "--to", tmp_path / "to")
    assert code == 0
    assert "keskar.json: runs (6 rows)" in output
    code, output = lecture6("show", "keskar", "--from", tmp_path / "to", "--rows", "2")
    assert code == 0
    assert "trials     [3, 3]" in output
    assert "row 1" in output


def test_a_data_set_alone_takes_the_place_of_the_only_one(lecture6, monkeypatch):
    used = [{"data": "mnist", "i": 0}, {"data": "mnist", "i": 1}]
    reading = dataclasses.replace(STUDIES["keskar"], grids={"smoke": used})
    monkeypatch.setitem(STUDIES, "keskar", reading)
    command = ("run", "keskar", *SMOKE, "--dry-run", "--data")
    for new in ("fashion_mnist", "mnist=fashion_mnist"):
        code, output = lecture6(*command, new)
        assert code == 0
        assert output.count("data fashion_mnist") == 2
    used[1]["data"] = "cifar10"
    code, output = lecture6(*command, "fashion_mnist")
    assert code == 2
    assert "'fashion_mnist' is not of the form OLD=NEW" in output
    assert "toy at profile smoke uses cifar10, mnist" in output


def test_failed_trials_are_counted_named_and_set_the_exit_code(lecture6, monkeypatch, tmp_path):
    monkeypatch.setitem(STUDIES, "keskar", toy(tmp_path / "log", n=2, fail_until=1))
    code, output = lecture6("run", "keskar", "--profile", "smoke")
    assert code == 1
    assert "failed (2 trials): ArithmeticError: this trial fails at first; the first: i 0" in output
    assert "0 trials finished, 2 failed" in output


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["run", "keskar"], 1, "Error: toy has profiles smoke, not 'full'"),
        (["run", "zhang"], 2, "'zhang' is not one of 'keskar'"),
        (["run", "keskar", "--data", "mnist"], 1, "Error: toy has profiles smoke, not 'full'"),
        (["run", "keskar", *SMOKE, "--data", "mnist="], 2, "'mnist=' is not of the form OLD=NEW"),
        (["run", "keskar", *SMOKE, "--data", "mnist"], 2, "toy at profile smoke uses no data set"),
        (["run", "keskar", *SMOKE, "--data", "a=b"], 1, "uses a; they use no data set"),
        (["run", "keskar", "--profile", "smoke", "--jobs", "0"], 2, "0 is not in the range"),
        (["collect", "keskar", "--profile", "smoke"], 1, "0 of the 3 trials"),
        (["show", "keskar"], 1, "Error: no results of 'keskar'"),
        (["run", "keskar", "--profile", "smoke", "--folder", "/proc/none"], 1, "cannot write in"),
        (["run", "keskar", "--profile", "smoke", "--backend", "dask"], 1, "a scheduler's address"),
    ],
)
def test_an_error_is_one_clear_message(lecture6, words, code, message):
    found, output = lecture6(*words)
    assert found == code
    assert message in output
    assert "Traceback" not in output


def test_help_names_every_command_in_the_order_of_their_use(lecture6):
    output = lecture6("--help")[1]
    places = [output.index(f"\n  {name} ") for name in ("list", "run", "collect", "show")]
    assert places == sorted(places)
    for name in ("run", "collect", "show"):
        assert "Usage: main" in lecture6(name, "-h")[1]


@pytest.mark.slow
def test_it_is_installed_as_lecture6_and_runs_as_a_module():
    [script] = metadata.entry_points(group="console_scripts", name="lecture6")
    assert script.load() is main
    done = subprocess.run(
        [sys.executable, "-m", "lecture6", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"lecture6, version {metadata.version('lecture6')}\n"
