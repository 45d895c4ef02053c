"""Results of code that has changed are not reused, wherever in the user's files it stands."""

from pathlib import Path

import pytest

from icl_eval.presets import load_preset
from tests.icl_eval.test_cli import USER_FILE


def test_a_change_in_any_file_of_the_users_is_another_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    named = USER_FILE.replace("HarderMQAR", "MQAROfSeveralFiles")
    files = {name: tmp_path / f"{name}.py" for name in ("users_preset", "users_layers", "users_constants", "unused")}
    files["users_preset"].write_text("from users_layers import layer\nimport json\nimport numpy\n" + named)
    files["users_layers"].write_text("import users_constants\ndef layer():\n    return users_constants.SIZE\n")
    files["users_constants"].write_text("SIZE = 3\n")
    experiment = load_preset(str(files["users_preset"]))
    assert experiment.user_code().keys() == {"icl_eval_preset_users_preset", "users_layers", "users_constants"}
    seen = {experiment.fingerprint()}
    for name in ("users_layers", "users_constants"):
        files[name].write_text(files[name].read_text() + "# another version\n")
        seen.add(experiment.fingerprint())
    files["unused"].write_text("SIZE = 4\n")
    seen.add(experiment.fingerprint())
    assert len(seen) == 3


def test_presets_of_ours_depend_on_no_file_of_the_users() -> None:
    assert load_preset("quickstart").user_code() == {}
