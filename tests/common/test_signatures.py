"""The signature of a class whose constructors pass keywords on."""

import inspect

import pytest

from sb3_sparse.common.signatures import FullSignature, full_signature
from sb3_sparse.common.validation import per_network, positive


class Root:
    def __init__(self, a, b=1, *, hidden=0):
        pass


class Middle(Root):
    __signature__ = FullSignature()

    def __init__(self, a, *args, c=2, **kwargs):
        super().__init__(a, *args, **kwargs)


class Top(Middle):
    def __init__(self, *args, d, c=3, **kwargs):
        super().__init__(*args, c=c, **kwargs)


class Closed(Top):
    def __init__(self, only):
        super().__init__(only, d=1)


@pytest.mark.parametrize(
    ("cls", "expected"),
    [
        (Middle, "(a, b=1, *, c=2, hidden=0)"),
        (Top, "(a, b=1, *, d, c=3, hidden=0)"),
        (Closed, "(only)"),
    ],
)
def test_keywords_come_from_all_constructors_that_are_reached(cls, expected):
    assert str(full_signature(cls)) == str(inspect.signature(cls)) == expected


def test_an_instance_has_none_of_its_own():
    assert not hasattr(Top(1, d=2), "__signature__")


def test_values_by_network():
    assert per_network("scale", 2, ["pi", "qf"], positive) == {"pi": 2.0, "qf": 2.0}
    assert per_network("scale", {"qf": 1, "pi": 3}, ("pi", "qf"), positive) == {"pi": 3.0, "qf": 1.0}
    for value, message in [
        ({"pi": 1}, r"^scale=\{'pi': 1\}: expected a number, or one for each of \['pi', 'qf'\]\.$"),
        ({"pi": 1, "qf": 0}, r"^scale\['qf'\]=0: expected a positive number\.$"),
        (0, r"^scale=0: expected a positive number\.$"),
    ]:
        with pytest.raises(ValueError, match=message):
            per_network("scale", value, ["pi", "qf"], positive)
