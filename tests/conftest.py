"""Corpora that tests prepare stay among the tests' own files; what all tests import is no garbage to look through."""

import gc

import pytest


@pytest.fixture(autouse=True, scope="session")
def corpus_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ICL_EVAL_CACHE", str(tmp_path_factory.mktemp("corpora")))
        yield


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
