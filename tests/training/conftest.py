"""Set-up shared by the tests of training."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def _builds_the_parser_once(one_parser):
    pass
