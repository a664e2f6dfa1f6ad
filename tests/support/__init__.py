"""What tests share and fixtures are made of, one subject a module; the type of a fixture stands beside it."""

from pkgutil import iter_modules

import pytest

# What an assertion here compared is told as in a test.
pytest.register_assert_rewrite(*(f"{__name__}.{module.name}" for module in iter_modules(__path__)))
