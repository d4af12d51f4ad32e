"""A folder with training data for the tests of one file."""

import pytest

from tests.training.recipes import write_data


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("training")
    write_data(directory)
    return directory
