"""What an experiment's folder tells of it."""

from pathlib import Path

import pytest

from icl_eval.studies import Study


@pytest.mark.parametrize(
    ("name", "preset", "scale"),
    [("fig2_balance-h200", "fig2_balance", "h200"), ("quickstart", "quickstart", ""), ("my-own", "my-own", "")],
)
def test_a_scale_is_told_from_the_rest_of_a_name(name: str, preset: str, scale: str) -> None:
    study = Study(Path("runs/any"), {"name": name}, ())
    assert (study.preset, study.scale) == (preset, scale)
