"""Corpora that tests prepare stay among the tests' own files; what all tests import is no garbage to look through; long
tests come first, so that no process is left with one when the others are done."""

import gc

import pytest

LONG = (
    "test_launches.py",
    "test_evaluate_your_model.py",
    "test_distributed.py",
    "test_launch.py",
    "test_triton.py",
    "test_paper_presets.py",
    "test_task.py",
    "test_hopper.py",
    "test_measure.py",
)


@pytest.fixture(autouse=True, scope="session")
def corpus_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ICL_EVAL_CACHE", str(tmp_path_factory.mktemp("corpora")))
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # what is still frozen at the end libraries report as leaked
