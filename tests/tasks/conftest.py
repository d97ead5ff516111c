"""Built bundles of the digits tasks, each built once for all tests."""

from __future__ import annotations

import pytest

from selfbench.suite.bundle import BundleFolder, write_bundle
from selfbench.suite.data import Data
from selfbench.tasks.images.digits_semi import DigitsSemi
from selfbench.tasks.streams.digits_c import DigitsCContinual


@pytest.fixture(scope="session")
def nothing_fetched(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """An empty data folder: enough for what libraries bring."""
    return Data(tmp_path_factory.mktemp("nothing"))


@pytest.fixture(scope="session")
def digits_c(tmp_path_factory: pytest.TempPathFactory, nothing_fetched: Data) -> BundleFolder:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "digits-c", DigitsCContinual().build(nothing_fetched))


@pytest.fixture(scope="session")
def digits_semi(tmp_path_factory: pytest.TempPathFactory, nothing_fetched: Data) -> BundleFolder:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "digits-semi", DigitsSemi().build(nothing_fetched))
