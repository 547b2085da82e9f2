"""Journeys in a browser: which head the memory serves, and who wrote a logit."""

import pytest

pytestmark = pytest.mark.browser
