"""NaN in a certificate: no comparison holds, whatever comes before and after."""

import numpy as np
import pytest

from pocketsam.errors import ParityError
from pocketsam.export.verification.golden import make_golden
from pocketsam.export.verification.report import HIGHEST, LOWEST, Row
from pocketsam.export.verification.tolerances import FLOOR, FP32, ROUGH, grade_of
from pocketsam.models.sam import seeded
from pocketsam.runtime.verification.metrics import tensor_figures
from pocketsam.runtime.verification.tolerance import Tolerance


@pytest.mark.parametrize("key", [*HIGHEST, *LOWEST])
def test_nan_is_worse_than_any_figure_before_and_after(key):
    for order in (
        (0.5, np.nan),
        (np.nan, 0.5),
        (0.5, np.nan, 0.5),
        (np.inf, np.nan),
        (-np.inf, np.nan),
    ):
        row = Row("decoder", "masks")
        for number, value in enumerate(order):
            row.add(f"case {number}", {key: value})
        assert np.isnan(row.figures[key])
        assert row.cases[key] == f"case {order.index(np.nan)}"
        if key in FP32.limits():
            assert [v.quantity for v in row.violations(FP32)] == [key]
            assert [v.quantity for v in row.violations(FLOOR)] == [key]
            assert grade_of([row.summary()]) == "lossy"


@pytest.mark.parametrize("quantity", FP32.limits())
def test_a_tolerance_does_not_hold_nan(quantity):
    """Not even where any number would do."""
    wide = Tolerance(np.inf, -np.inf, -np.inf, np.inf, 0.0, -np.inf, -np.inf)
    assert wide.violations({quantity: 0.5}) == []
    (violation,) = wide.violations({quantity: np.nan})
    assert "nan" in str(violation)


def test_figures_that_overflow_are_outside_of_any_tolerance():
    huge = np.array([1e200, -1e200, 3e250])
    for found in (huge, -huge, huge * 2):
        assert tensor_figures(huge, found)
    figures = tensor_figures(huge, -huge)
    assert {v.quantity for v in ROUGH.violations(figures)} >= {"error", "snr_db", "cosine"}


def test_golden_answers_that_are_nan_widen_no_tolerance():
    golden = make_golden(seeded(64, seed=11))
    good = {
        name: {key: golden.arrays[f"{name}_{key}"] for key in ("scores", "low_res_masks")}
        for name in ("point", "box")
    }
    assert golden.tolerance(FP32, good).error == FP32.error
    for key in ("scores", "low_res_masks"):
        bad = good | {"box": good["box"] | {key: good["box"][key] * np.nan}}
        with pytest.raises(ParityError, match="no finite numbers"):
            golden.tolerance(FP32, bad)
