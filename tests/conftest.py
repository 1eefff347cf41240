"""Set-up shared by all tests."""

import pytest

# The shared checks are plain modules: without this their failures would show no values.
pytest.register_assert_rewrite("contracts")
