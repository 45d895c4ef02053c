"""Verdicts on run folders whose truth is known: claims that hold, that fail, and evidence that decides nothing."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from math import inf
from pathlib import Path

import pandas as pd
import pytest

from icl_eval import Experiment, load_runs
from icl_eval.claims import CLAIMS
from icl_eval.commands.claims import claims, claims_markdown
from icl_eval.kernel_times import find_kernel_times
from icl_eval.presets import load_preset
from icl_eval.run_folder import RunFolderError
from icl_eval.studies import studies
from icl_eval.verdicts import Verdict, judge, verdicts
from tests.icl_eval.synthetic import TUNED, Loss, falling, few_resamples, write_study  # noqa: F401

ROOT = Path(__file__).parents[2]
BY_NAME = {claim.name: claim for claim in CLAIMS}
LONG = falling(softmax=(3.2, 0.1, inf), linear=(3.0, 0.1, 1024), power=(2.9, 0.1, inf))
WORLDS: dict[str, tuple[Loss, Loss]] = {
    "C1": (
        falling(softmax=(3.0, 0.1, inf), linear=(3.0, 0.1, 32)),
        falling(softmax=(3.0, 0.1, 32), linear=(3.0, 0.1, inf)),
    ),
    "C2": (
        falling(softmax=(3.0, 0.1, inf), linear=(3.0, 0.1, 32)),
        falling(softmax=(3.0, 0.1, 32), linear=(3.0, 0.1, inf)),
    ),
    "C3": (
        falling(context_32768=(3.5, 0.05, inf), context_2048=(2.5, 0.05, inf), context_64=(3.2, 0.05, inf)),
        falling(context_32768=(3.5, 0.05, inf), context_2048=(2.5, 0.05, inf), context_64=(1.5, 0.05, inf)),
    ),
    "C6": (
        falling(window=(3.0, 0.1, 64), linear=(3.0, 0.1, 512)),
        falling(window=(3.0, 0.1, 512), linear=(3.0, 0.1, 64)),
    ),
    "C7": (
        falling(window=(3.0, 0.1, 64), linear=(3.0, 0.1, inf)),
        falling(window=(3.0, 0.12, inf), linear=(3.0, 0.1, inf)),
    ),
    "C10": (
        falling(window=(3.0, 0.1, 512), power=(3.0, 0.1, inf)),
        falling(window=(3.0, 0.1, inf), power=(3.0, 0.1, 512)),
    ),
    "C11": (
        falling(base=(3.0, 0.1, inf), batch=(3.0, 0.13, inf), parameters=(3.0, 0.12, inf), context=(3.0, 0.14, inf)),
        falling(base=(3.0, 0.1, inf), batch=(3.0, 0.13, inf), parameters=(3.0, 0.05, inf), context=(3.0, 0.14, inf)),
    ),
    "C12": (LONG, falling(softmax=(3.2, 0.1, inf), linear=(2.0, 0.1, 1024), power=(2.9, 0.1, inf))),
    "C12s": (LONG, falling(softmax=(2.7, 0.1, inf), linear=(3.0, 0.1, 1024), power=(2.9, 0.1, inf))),
    "C13": (LONG, falling(softmax=(3.2, 0.1, inf), linear=(3.0, 0.1, inf), power=(2.9, 0.1, inf))),
    "C14": (
        falling(softmax=(3.0, 0.1, inf), window=(3.05, 0.1, 1024), power=(2.9, 0.1, inf)),
        falling(softmax=(3.0, 0.1, inf), window=(2.8, 0.1, 1024), power=(2.9, 0.1, inf)),
    ),
}


def preset(name: str, scale: str = "h200") -> Experiment:
    return load_preset(name, scale)


def verdict(name: str, folder: Path) -> Verdict:
    (study,) = studies(load_runs(folder))
    return judge(BY_NAME[name], study)


@pytest.mark.parametrize("name", WORLDS)
def test_claims_hold_and_fail_where_they_should(name: str, tmp_path: Path) -> None:
    experiment = preset(BY_NAME[name].preset)
    for outcome, loss in zip(("holds", "fails"), WORLDS[name], strict=True):
        found = verdict(name, write_study(tmp_path / outcome, experiment, loss))
        assert found.outcome == outcome, found.reason
        assert found.seeds == 3
        assert found.unit == "nats/byte"
        assert all(gate.passed for gate in found.gates)


def test_every_trained_claim_is_tested_above() -> None:
    assert WORLDS.keys() == {claim.name for claim in CLAIMS if claim.judge}


CENTRAL = preset("fig9_long_context")
COSINE = tuple(replace(arm, training=replace(arm.training, schedule="cosine")) for arm in CENTRAL.arms)
SHORT = {"softmax": (3.2, 0.1, 1024), "linear": (3.0, 0.1, 1024), "power": (2.9, 0.1, 1024)}


@pytest.mark.parametrize(
    ("experiment", "loss", "how", "reason"),
    [
        (CENTRAL, LONG, {"skip": [("power", 1)]}, "complete: unfinished: power seed 1"),
        (CENTRAL, LONG, {"skip": [("linear", s) for s in range(3)]}, "needs one arm with mixer linear; there is none"),
        (CENTRAL, LONG, {"diverged": [("softmax", 2)]}, "softmax, seed 2, ended in NaN"),
        (CENTRAL, LONG, {"tuning": None}, "learning rate: linear: not checked, no ledger"),
        (CENTRAL, LONG, {"tuning": {**TUNED, "at_edge": True}},
         "0.002 is at the edge of what was tried (0.0005, 0.001, 0.002, 0.004)"),
        (CENTRAL, LONG, {"tuning": {**TUNED, "learning_rates": [1e-3, 2e-3], "losses": [1.6, 1.5]}},
         "only 2 rates were tried (0.001, 0.002)"),
        (CENTRAL, LONG, {"noise": 0.5}, "not decided"),
        (replace(CENTRAL, name="fig9_long_context-smoke"), LONG, {}, "scale: smoke scale"),
        (replace(CENTRAL, arms=COSINE), LONG, {}, "schedule: no decay branches: linear, softmax, power"),
        (CENTRAL, falling(**SHORT), {}, "long gain: "),
        (CENTRAL, falling(**{**SHORT, "softmax": (3.2, 0.001, inf)}), {}, "gain: softmax gains 0.0"),
    ],
    ids=[
        "missing-seed", "missing-arm", "nan", "untuned", "edge", "few-rates", "noise", "smoke", "cosine",
        "no-long-gain", "plateau",
    ],
)  # fmt: skip
def test_what_cannot_decide_is_inconclusive(
    experiment: Experiment, loss: Loss, how: dict, reason: str, tmp_path: Path
) -> None:
    found = verdict("C12", write_study(tmp_path, experiment, loss, **how))
    assert found.outcome == "inconclusive"
    assert reason in found.reason


def test_a_verdict_names_the_seeds_that_its_contrasts_are_over(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = write_study(tmp_path, CENTRAL, LONG, skip=[("power", 1), ("linear", 2)])
    found = verdict("C12", root)
    assert found.seeds == 1
    assert {len(contrast.by_seed) for contrast in found.contrasts} == {1}
    claims([root])
    assert "seeds 0): complete: unfinished: linear seed 2, power seed 1\n" in capsys.readouterr().out


def test_gates_are_told_where_contrasts_cannot_be_had(tmp_path: Path) -> None:
    found = verdict("C12", write_study(tmp_path, CENTRAL, LONG, skip=[("power", s) for s in range(3)], tuning=None))
    assert found.reason == "evidence is missing: needs one arm with mixer power; there is none"
    assert found.contrasts == ()
    assert not {gate.name: gate.passed for gate in found.gates}["learning rate"]


def test_every_seed_needs_a_tuned_rate(tmp_path: Path) -> None:
    root = write_study(tmp_path, CENTRAL, LONG)
    untuned = write_study(tmp_path / "untuned", CENTRAL, LONG, tuning=None)
    shutil.rmtree(root / "power" / "seed0")
    shutil.copytree(untuned / "power" / "seed0", root / "power" / "seed0")
    assert verdict("C12", root).reason == "learning rate: power: not checked, no ledger"


def test_half_the_budget_that_says_otherwise_is_said(tmp_path: Path) -> None:
    late = falling(softmax=(3.2, 0.1, inf), linear=(3.0, 0.1, inf), power=(2.9, 0.1, inf))

    def loss(arm, position, share):  # type: ignore[no-untyped-def]
        return (LONG if share == 1 else late)(arm, position, share)

    found = verdict("C13", write_study(tmp_path, CENTRAL, loss))
    assert found.outcome == "inconclusive"
    assert "halving: half the budget turns 0.25 of softmax's gain" in found.reason


def test_one_seed_needs_a_larger_effect(tmp_path: Path) -> None:
    small = falling(softmax=(2.908, 0.1, inf), linear=(3.0, 0.1, inf), power=(2.9, 0.1, inf))
    three = verdict("C12", write_study(tmp_path / "three", CENTRAL, small, noise=1e-4))
    one = verdict("C12", write_study(tmp_path / "one", CENTRAL, small, noise=1e-4, seeds=(0,)))
    assert (three.outcome, one.outcome) == ("holds", "inconclusive")
    large = verdict("C12", write_study(tmp_path / "large", CENTRAL, LONG, seeds=(0,)))
    assert large.outcome == "holds"
    assert large.seeds == 1


def test_seeds_that_disagree_do_not_hold(tmp_path: Path) -> None:
    root = write_study(tmp_path, CENTRAL, LONG)
    other = write_study(tmp_path / "other", CENTRAL, WORLDS["C12"][1])
    shutil.rmtree(root / "linear" / "seed1")
    shutil.copytree(other / "linear" / "seed1", root / "linear" / "seed1")
    assert verdict("C12", root).outcome == "inconclusive"


def test_nothing_run_is_not_run(tmp_path: Path) -> None:
    by_name = {v.claim.name: v for v in verdicts([])}
    assert {name for name, v in by_name.items() if v.outcome == "not run"} == by_name.keys() - {"C4", "C5"}
    assert by_name["C4"].outcome == by_name["C5"].outcome == "holds"
    runs = load_runs(write_study(tmp_path, CENTRAL, LONG))
    assert {v.claim.name for v in verdicts(runs) if v.study} == {"C12", "C12s", "C13"}


@pytest.mark.parametrize(
    ("changed", "finding"),
    [
        ({"runs_per_device": 2}, "shared the device with other runs, or did not record it: linear, seed 1"),
        ({"device": "another GPU"}, "one run at a time on GPU and another GPU"),
    ],
)
def test_seconds_of_a_shared_device_decide_nothing(tmp_path: Path, changed: dict, finding: str) -> None:
    root = write_study(tmp_path, CENTRAL, LONG)
    assert verdict("C12s", root).outcome == "holds"
    file = root / "linear" / "seed1" / "env.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    found = verdict("C12s", root)
    assert (found.outcome, found.reason) == ("inconclusive", f"alone: {finding}")
    assert verdict("C12", root).outcome == "holds"


def test_seconds_without_a_common_range_are_missing_evidence(tmp_path: Path) -> None:
    root = write_study(tmp_path, CENTRAL, LONG)
    slow = write_study(tmp_path / "slow", CENTRAL, LONG, seconds_per_flop=1e-12)
    shutil.rmtree(root / "linear")
    shutil.copytree(slow / "linear", root / "linear")
    assert "share no range of seconds" in verdict("C12s", root).reason
    assert verdict("C12", root).outcome == "holds"


@pytest.mark.parametrize(
    ("change", "outcomes"),
    [
        (lambda rows: rows, ("holds", "holds")),
        (lambda rows: rows.assign(median_ms=rows.median_ms * rows.provider.eq("power p=2") * 4 + rows.median_ms,
                                  low_ms=rows.low_ms * 5, high_ms=rows.high_ms * 5), ("fails", "holds")),
    ],
    ids=["as-measured", "five-times-slower"],
)  # fmt: skip
def test_kernel_claims_read_the_benchmark(change, outcomes: tuple, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    shutil.copytree(ROOT / "results" / "kernels", tmp_path / "kernels")
    file = tmp_path / "kernels" / "power_attention.csv"
    rows = pd.read_csv(file)
    softmax = rows.provider.str.startswith("softmax")
    changed = change(rows)
    changed.loc[softmax] = rows[softmax]
    changed.to_csv(file, index=False)
    found = {v.claim.name: v for v in verdicts([], find_kernel_times([tmp_path]))}
    assert (found["C8"].outcome, found["C9"].outcome) == outcomes


def test_a_damaged_kernel_benchmark_is_named(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "results" / "kernels", tmp_path / "kernels")
    (tmp_path / "kernels" / "power_attention.json").write_text("{")
    with pytest.raises(RunFolderError, match="cannot read the kernel benchmark"):
        find_kernel_times([tmp_path])


@pytest.mark.parametrize("damage", [
    lambda data: data[:-100],
    lambda data: b"",
    lambda data: data[:58] + b"\xff" * 8 + data[66:],
], ids=["cut", "empty", "overwritten"])  # fmt: skip
def test_damaged_measurements_are_named_and_the_other_experiments_judged(
    damage: Callable[[bytes], bytes], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """One that a claim needs, and one of an experiment that no claim is about."""
    central = write_study(tmp_path, CENTRAL, LONG, seeds=(0, 1))
    other = write_study(tmp_path, replace(CENTRAL, name="mine"), LONG, seeds=(0,))
    write_study(tmp_path, preset("table4_equal_inference"), WORLDS["C14"][0])
    files = [root / "power" / "seed0" / "positions.npz" for root in (central, other)]
    for file in files:
        file.write_bytes(damage(file.read_bytes()))
    claims([tmp_path])
    out, errors = capsys.readouterr()
    assert [f"{file} is damaged: " in errors for file in files] == [True, True]
    assert f"seeds 0, 1): evidence is missing: power: {files[0]} is damaged: " in out
    assert [line.split()[1] for line in out.splitlines() if line.startswith(("C12 ", "C13 ", "C14 "))] == [
        "inconclusive", "inconclusive", "holds",
    ]  # fmt: skip


def test_the_document_is_what_the_code_says() -> None:
    assert (ROOT / "docs" / "claims.md").read_text() == claims_markdown(), "icl-eval claims > docs/claims.md"
