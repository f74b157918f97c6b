import math

import numpy as np
import pytest

from lecture6.schedules import compose, factors, scale_lr, step_decay, warmup


def test_schedules_at_their_points():
    decay = step_decay((30, 60), factor=0.1)
    assert [decay(e) for e in (0, 29.99, 30, 59, 60, 90)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )
    ramp = warmup(5, start=0.2)
    assert [ramp(e) for e in (0, 2.5, 5, 80)] == pytest.approx([0.2, 0.6, 1, 1])


def test_a_constant_warmup_stays_and_jumps():
    factor = warmup(5, 1 / 8, kind="constant")
    assert [factor(e) for e in (0, 4.999, 5, 80)] == [0.125, 0.125, 1, 1]
    with pytest.raises(ValueError, match="'gradual' or 'constant', got 'linear'"):
        warmup(5, kind="linear")


def test_goyals_schedule_is_a_product():
    """§2.2 and §5.1: from η to kη in 5 epochs, a tenth at 30, 60 and 80."""
    k, eta = 32, 0.1
    factor = compose(warmup(5, 1 / k), step_decay((30, 60, 80)))
    rates = [scale_lr(eta, k) * factor(e) for e in (0, 2.5, 5, 29.9, 30, 60, 89)]
    np.testing.assert_allclose(rates, [0.1, 1.65, 3.2, 3.2, 0.32, 0.032, 0.0032])


@pytest.mark.parametrize(("rule", "expected"), [("linear", 0.8), ("sqrt", 0.4), ("none", 0.2)])
def test_the_rules_for_a_batch_four_times_as_large(rule, expected):
    assert scale_lr(0.2, 4, rule=rule) == pytest.approx(expected)
    assert scale_lr(0.2, 1, rule=rule) == 0.2
    assert scale_lr(scale_lr(0.2, 4, rule=rule), 1 / 4, rule=rule) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("k", "rule", "message"),
    [(0, "linear", "got 0"), (math.nan, "none", "got nan"), (2, "cubic", "'none', got 'cubic'")],
)
def test_impossible_scalings_are_refused(k, rule, message):
    with pytest.raises(ValueError, match=message):
        scale_lr(0.1, k, rule=rule)


def test_milestones_may_be_given_one_by_one():
    assert step_decay(e for e in (1, 2))(1.5) == pytest.approx(0.1)
    for milestones in (["30"], [30, math.nan], [None]):
        with pytest.raises(ValueError, match=r"each of the milestones must be a .*number"):
            step_decay(milestones)


def test_no_warmup_is_the_whole_rate_at_once():
    assert [warmup(0)(e) for e in (0, 0.5, 3)] == [1, 1, 1]
    assert [warmup(0, kind="constant")(e) for e in (0, 0.5, 3)] == [1, 1, 1]
    for impossible in ({"epochs": -1}, {"epochs": math.nan}, {"epochs": 5, "start": -0.1}):
        with pytest.raises(ValueError, match="must be a finite number and at least 0"):
            warmup(**impossible)


def test_a_schedule_is_called_within_the_run_only():
    """A list of one factor an epoch is a schedule of exactly these epochs."""
    rates = [1.0, 0.5, 0.25, 0.1, 0.01]
    found = factors(lambda epoch: rates[int(epoch)], 5, 4)
    np.testing.assert_array_equal(found, np.repeat(rates, 4).reshape(5, 4))
    root = factors(lambda epoch: math.sqrt(1 - epoch / 3), 3, 2)
    np.testing.assert_allclose(root.ravel(), np.sqrt(1 - np.arange(6) / 6))
    np.testing.assert_array_equal(factors(None, 2, 3), np.ones((2, 3)))


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (lambda epoch: [1.0][int(epoch)], "fails at epoch 1 of 2, .* IndexError: list index"),
        (lambda epoch: 1 - epoch, "fails at epoch 1.5 of 2, .* at least 0 .*, got -0.5"),
        (lambda epoch: math.nan, "fails at epoch 0 of 2, .* got nan"),
        (lambda epoch: None, "fails at epoch 0 of 2, .* must be a number, got None"),
    ],
)
def test_a_schedule_that_fails_is_found_before_the_run(schedule, message):
    with pytest.raises(ValueError, match=message):
        factors(schedule, 2, 2)
