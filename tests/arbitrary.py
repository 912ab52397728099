"""Arbitrary input for the tests of each room: words, values, overrides, and how it is refused."""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from mixshare.config import FIELDS, METHODS, PROFILES

REFUSALS = (ValueError, TypeError, OSError, ArithmeticError)
PATHS = [
    "..",
    "../out",
    "/out",
    "a/../../out",
    "..\\out",
    "~",
    "$HOME",
    ".",
    "",
    "out\0",
    "-o",
    "--help",
    "'; touch out; '",
    "{out}",
    "%s",
    "é" * 300,
]

examples = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
# Where one example takes long.
few_examples = settings(examples, max_examples=max(20, settings.default.max_examples // 5))

field_names = st.sampled_from(list(FIELDS))
words = st.sampled_from([*PATHS, *METHODS, *PROFILES, *FIELDS]) | st.text(max_size=20)
numbers = st.integers() | st.sampled_from([2**63, -(10**400)]) | st.floats()
scalars = st.none() | st.booleans() | numbers | words
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=10,
)
overrides = st.dictionaries(field_names | words, values, max_size=4)


def refusal(call, *arguments) -> str | None:
    """Return the message with which a call is refused, checked to be one line; None if it isn't."""
    try:
        call(*arguments)
    except REFUSALS as error:
        message = str(error)
        assert message.isprintable() and len(message) < 1000, message
        return message
    return None


class Trap:
    """Unpickling this makes the folder `sprung` in the current one."""

    def __reduce__(self):
        return os.mkdir, ("sprung",)
