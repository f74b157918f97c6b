"""Predictions and the figures of chapter 3 that move: what the widgets hand over to their pages."""

import json

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from lecture6.course.explorables import MIME_TYPE, Linked, Scrubber
from lecture6.course.widgets import Predict

OPTIONS = {"z": "the first", "a": "the second"}


@pytest.fixture(autouse=True)
def static(monkeypatch):
    monkeypatch.setenv("LECTURE6_STATIC", "1")


def predict(**more):
    asked = {"options": OPTIONS, "truth": "a", "says": {"z": "No."}, "figure": go.Figure()}
    return Predict(question="Which?", **asked | more)


def test_options_keep_their_order_when_a_notebook_is_saved():
    content = predict()._repr_mimebundle_()[MIME_TYPE]
    saved = json.loads(json.dumps(content, sort_keys=True))
    assert saved["start"]["options"] == [["z", "the first"], ["a", "the second"]]
    assert "Which?" in content["about"]


@pytest.mark.parametrize("more", [{"truth": "b"}, {"says": {"z": "No.", "c": "No."}}])
def test_a_key_that_is_no_option_is_refused(more):
    with pytest.raises(ValueError, match=r"'[bc]'"):
        predict(**more)


def test_the_truth_may_be_numbers_of_numpy():
    truth = [*pd.Series([1.5, 2.5], index=np.array([1, 2])).items()]
    axes = {"x": {"label": "x", "low": np.float64(1), "high": 2}}
    found = predict(options=[], says={}, truth=truth, knots=np.array([1, 2]).tolist(), axes=axes)
    content = json.loads(json.dumps(found._repr_mimebundle_()[MIME_TYPE]))
    assert content["start"]["truth"] == [[1, 1.5], [2, 2.5]]
    assert content["start"]["axes"]["x"]["low"] == 1


def test_with_a_kernel_the_figure_goes_to_the_page(monkeypatch):
    monkeypatch.delenv("LECTURE6_STATIC")
    figure = go.Figure(go.Scatter(y=[1, 2]), {"title": {"text": "A title"}})
    state = predict(figure=figure).get_state()
    assert state["figure"]["layout"]["title"]["text"] == "A title"
    assert "export default" in state["_esm"]


def test_a_path_is_its_mean_and_range_over_seeds():
    rows = [
        (path, split, seed, alpha, seed + alpha + (split == "test"), seed / 10)
        for path in ("line", "curve")
        for split in ("train", "test")
        for seed in (0, 1, 3)
        for alpha in (-1.0, 0.0, 2.0)
    ]
    columns = ["path", "split", "seed", "alpha", "loss", "accuracy"]
    table = pd.DataFrame(rows, columns=columns)
    scrubber = Scrubber(table, title="A title", provenance="A run", alpha=2)
    assert [name for name, _ in scrubber.paths] == ["line", "curve"]
    assert (scrubber.path, scrubber.alpha) == ("line", 2)
    for _, at in scrubber.paths:
        for alpha, *found in at:
            loss = np.array([4 / 3, 0, 3]) + alpha
            accuracy = np.array([4 / 3, 0, 3]) / 10
            np.testing.assert_allclose(found, [loss, loss + 1, accuracy, accuracy])


@pytest.mark.parametrize("start", [{"epsilon": -1}, {"batch_size": 0}, {"size": 3}])
def test_what_no_control_can_show_is_refused(start):
    (name,) = start
    with pytest.raises(ValueError, match=name):
        Linked(nets=[], epsilons=[1e-3], **start)
