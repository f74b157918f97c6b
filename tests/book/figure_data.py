"""What a figure of a page shows, and what its button saves, for the tests of pages."""

import base64
import csv
import io
import json

import numpy as np
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys


def figure_of(plot):
    """The figure that a page shows at first, from the JSON that it holds for it."""
    script = plot.find_element(By.XPATH, "../script").get_attribute("textContent")
    start = json.loads(script)["start"]
    if "states" not in start:
        return start["figure"]
    number, parts = 0, start["parts"]
    for i, control in zip(start["at"], start["controls"], strict=True):
        number = number * len(control["names"]) + i
    state = start["states"][number]
    *data, layout = (
        {name: parts[j] for name, j in parts[i].items()} for i in [*state["data"], state["layout"]]
    )
    return {"data": data, "layout": layout}


def move(control):
    """Move a slider to the end that is further away, or press another button, by the keys."""
    inputs = control.find_elements(By.TAG_NAME, "input")
    if inputs[0].get_attribute("type") == "range":
        value, most = (int(inputs[0].get_attribute(name)) for name in ("value", "max"))
        inputs[0].send_keys(Keys.END if 2 * value < most else Keys.HOME)
    else:
        (pressed,) = (button for button in inputs if button.is_selected())
        pressed.send_keys(Keys.ARROW_RIGHT)  # after the last comes the first


def values(array):
    """An array of a figure's JSON, which Plotly may have encoded."""
    if isinstance(array, list):
        return np.array(array)
    flat = np.frombuffer(base64.b64decode(array["bdata"]), array["dtype"])
    return flat.reshape([int(n) for n in array.get("shape", "-1").split(",")])


def curves_of_json(data, caption):
    """Pairs of a curve's name in the CSV and, by axis, its values."""
    for trace, after in zip(data, [*data[1:], {}], strict=True):
        x, y, name = values(trace["x"]), values(trace["y"]), trace.get("name")
        axes, fill = [trace.get("xaxis", "x"), trace.get("yaxis", "y")], trace.get("fill")
        if "z" in trace:
            grid = [np.tile(x, len(y)), np.repeat(y, len(x)), values(trace["customdata"]).ravel()]
            yield caption, dict(zip([*axes, "z"], grid, strict=True))
            continue
        parts = {name or caption: slice(None)}
        if fill == "toself" and not name:  # there along the upper edge, back along the lower
            upper, lower = slice(len(x) // 2), slice(None, len(x) // 2 - 1, -1)
            band = {"upper": upper, "lower": lower} if (y[upper] != y[lower]).any() else {}
            parts = {f"{trace['legendgroup']}: {edge} edge": part for edge, part in band.items()}
        elif fill == "tonexty":
            parts = {f"{name}: lower edge": slice(None)}
        elif after.get("fill") == "tonexty":
            parts = {f"{after['name']}: upper edge": slice(None)}
        for label, part in parts.items():
            yield label, dict(zip(axes, (x[part], y[part]), strict=True))


def assert_same_data(text, figure, caption):
    """The CSV has the curves of the figure's JSON, and the titles of its axes as headings."""
    head, *rows = csv.reader(io.StringIO(text))
    curves = list(curves_of_json(figure["data"], caption))
    axes = sorted({axis for _, curve in curves for axis in curve})
    described = [
        figure["layout"].get(f"{axis[0]}axis{axis[1:]}", {}) for axis in axes if axis != "z"
    ]
    described += [trace["colorbar"] for trace in figure["data"] if "z" in trace]
    titles = [part.get("title", {}).get("text") for part in described]
    assert head == ["curve", *(t or axis for t, axis in zip(titles, axes, strict=True))]
    for name, curve in curves:
        length = len(next(iter(curve.values())))
        part, rows = rows[:length], rows[length:]
        assert {row[0] for row in part} == {name}
        for column, axis in enumerate(axes, 1):
            cells = [row[column] for row in part]
            want = curve.get(axis, np.full(length, ""))
            if want.dtype.kind in "fi":
                cells = [float(cell or "nan") for cell in cells]
            np.testing.assert_array_equal(cells, want)
    assert rows == []
