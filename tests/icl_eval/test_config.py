"""Configs: strict names, JSON round trips, no imports on loading."""

import json
import re
from dataclasses import dataclass, replace
from typing import Literal

import pytest

from icl_eval import Arm, Budget, Experiment, Training
from icl_eval.config import Config, config_from_dict, lookup
from icl_eval.models import ModelConfig, Power, Softmax
from icl_eval.presets import define_preset, load_preset, preset_files
from icl_eval.tasks import MQAR, Files


@pytest.mark.parametrize("preset", preset_files())
def test_presets_build_and_round_trip_through_json(preset: str) -> None:
    experiment = define_preset(preset)
    assert config_from_dict(json.loads(json.dumps(experiment.to_dict()))) == experiment
    for arm in experiment.arms if isinstance(experiment, Experiment) else ():
        assert arm.schedule().steps >= 1
        assert arm.model.num_parameters() > 0


def test_misspelt_fields_and_names_get_the_nearest_one() -> None:
    with pytest.raises(TypeError, match="Power has no field 'degre'; did you mean 'degree'"):
        Power(degre=2)
    with pytest.raises(ValueError, match="unknown task 'mqr'; did you mean 'mqar'"):
        lookup({"mqar": 1, "copy": 2}, "mqr", "task")
    with pytest.raises(ValueError, match="unknown configuration class 'Powr'; did you mean 'Power'"):
        config_from_dict({"class": "Powr"})
    with pytest.raises(ValueError, match="unknown preset 'quikstart'; did you mean 'quickstart'"):
        load_preset("quikstart")
    with pytest.raises(ValueError, match="Arm lacks the field 'budget'"):
        config_from_dict({"class": "Arm", "name": "a", "task": MQAR().to_dict(), "model": ModelConfig().to_dict()})


def test_two_classes_of_one_name_collide() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Collider(Config):
        """First of the name."""

    with pytest.raises(ValueError, match="two configuration classes are called 'Collider'"):
        type("Collider", (Config,), {"__module__": "elsewhere"})


def arm(**fields: object) -> Arm:
    given = {
        "name": "a",
        "task": MQAR(vocab_size=64, num_pairs=8),
        "model": ModelConfig(vocab_size=64),
        "budget": Budget(tokens=1e6),
    }
    return Arm(**{**given, **fields})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Budget(), "exactly one of flops, tokens and seconds"),
        (lambda: Budget(flops=1e9, tokens=10), "exactly one of flops, tokens and seconds"),
        (lambda: Budget(flops=-1.0), "Budget.flops = -1.0: must be positive"),
        (lambda: arm(model=ModelConfig(vocab_size=65)), "vocab_size = 65, but the task 'mqar' has 64 tokens"),
        (lambda: arm(name="a/b"), "Arm.name = 'a/b': must be letters"),
        (lambda: arm(budget=Budget(tokens=100)).schedule(), "arm 'a': a budget of 100 tokens is smaller than one step"),
        (lambda: Experiment(name="e", question="", arms=(arm(), arm())), "names must differ, got a, a"),
        (lambda: Training(schedule="linear"), "Training.schedule = 'linear': must be 'cosine' or 'branched'"),
        (lambda: Training(branches=(0.5, 0.25, 1.0)), "Training.branches .* must be shares of the budget that rise"),
        (lambda: Training(branches=(0.5,)), "Training.branches .* must be shares of the budget that rise to 1.0"),
        (lambda: Training(decay_fraction=0.0), "Training.decay_fraction = 0.0: must be above 0"),
        (lambda: Experiment(name="e", question="", arms=(arm(),), seeds=(1, 1)), "Experiment.seeds"),
        (lambda: Experiment(name="e", question="", arms=(arm(),), eval_sequences=8), "at least one batch"),
    ],
)
def test_impossible_experiments_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Training(batch_size=4.5), "Training.batch_size = 4.5: must be a whole number"),
        (lambda: Training(batch_size=True), "Training.batch_size = True: must be a whole number"),
        (lambda: Training(learning_rate="1e-3"), "Training.learning_rate = '1e-3': must be a finite number"),
        (
            lambda: Training(betas=(0.9,)),
            "Training.betas = (0.9,): must be a tuple of 2: a finite number, a finite number",
        ),
        (lambda: Training(betas=[0.9, 0.95]), "Training.betas = [0.9, 0.95]: must be a tuple of 2"),
        (
            lambda: Training(branches=(0.5, "1")),
            "Training.branches = (0.5, '1'): must be a tuple, each item a finite number",
        ),
        (lambda: Training(compile=1), "Training.compile = 1: must be True or False"),
        (lambda: Training(micro_batch_size="2"), "Training.micro_batch_size = '2': must be a whole number or None"),
        (lambda: arm(task="mqar"), "Arm.task = 'mqar': must be a Task"),
        (lambda: Budget(tokens="many"), "Budget.tokens = 'many': must be a finite number or None"),
        (lambda: replace(Training(), clip_norm=None), "Training.clip_norm = None: must be a finite number"),
    ],
)
def test_fields_of_another_type_are_refused_in_a_sentence(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        make()  # type: ignore[operator]


def test_types_are_checked_in_classes_of_the_users() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Typed(Config):
        """Every kind of annotation, an unknown generic included."""

        number: float = 1.0
        choice: Literal["a", 1] = "a"
        table: "list[int]" = 3  # type: ignore[assignment]

    assert Typed(number=2, choice=1, table="anything").number == 2
    for wrong in ({"number": 1j}, {"choice": True}, {"choice": "b"}):
        with pytest.raises(ValueError, match="must be"):
            Typed(**wrong)


def test_flops_are_matched_to_within_half_a_step() -> None:
    experiment = load_preset("quickstart")
    for arms in experiment.tasks().values():
        spent = [a.schedule().flops for a in arms]
        assert max(abs(flops - a.budget.flops) for flops, a in zip(spent, arms, strict=True)) <= max(
            a.flops_per_step / 2 for a in arms
        )
    schedule = arm(budget=Budget(tokens=1_000_000)).schedule()
    assert schedule.tokens == schedule.steps * 32 * 256
    assert schedule.mismatch == pytest.approx(schedule.tokens / 1e6 - 1)


def test_fingerprint_follows_what_determines_the_numbers() -> None:
    base = Experiment(name="e", question="?", arms=(arm(),))
    same = [replace(base, seeds=(4, 5)), replace(base, question="!")]
    other = [
        replace(base, arms=(arm(model=ModelConfig(vocab_size=64, mixers=(Softmax(),))),)),
        replace(base, snapshots=3),
    ]
    assert {e.fingerprint(device="cpu") for e in same} == {base.fingerprint(device="cpu")}
    prints = [
        base.fingerprint(device="cpu"),
        base.fingerprint(device="cuda"),
        *(e.fingerprint(device="cpu") for e in other),
    ]
    assert len(set(prints)) == 4


def test_where_data_lie_is_kept_and_is_no_part_of_the_identity() -> None:
    here, there = (Files(path=path, seq_len=256) for path in ("here", "there"))
    assert here.to_dict()["path"] == "here"
    assert config_from_dict(here.to_dict()) == here
    assert here.identity() == there.identity() == {key: v for key, v in here.to_dict().items() if "path" not in key}
    assert here.identity() != replace(here, heldout_fraction=0.2).identity()
