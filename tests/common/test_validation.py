"""One sentence for each kind of mistake; NumPy's numbers count as Python's."""

import numpy as np
import pytest

from sb3_sparse.common.validation import (
    choice,
    flag,
    fraction,
    names,
    non_negative,
    number_in,
    plain,
    positive,
    whole_number,
    whole_numbers,
)


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array(3), 3.0, np.float32(3.0)])
def test_whole_numbers_come_in_many_types(value):
    checked = whole_number("n", value, 1, 3)
    assert checked == 3
    assert type(checked) is int


@pytest.mark.parametrize("value", [True, np.True_, 1.5, float("nan"), float("inf"), "3", None, [3], np.array([3]), 3j, 0, 4])
def test_other_things_are_no_whole_number_from_1_to_3(value):
    with pytest.raises(ValueError, match=r"^n=.*: expected a whole number from 1 to 3\.$"):
        whole_number("n", value, 1, 3)


def test_the_sentence_says_the_bounds():
    with pytest.raises(ValueError, match=r"^n=0: expected a positive whole number\.$"):
        whole_number("n", 0, 1)
    with pytest.raises(ValueError, match=r"^n=-1: expected a whole number of at least 0\.$"):
        whole_number("n", -1, 0)
    with pytest.raises(ValueError, match=r"^n='x': expected a whole number\.$"):
        whole_number("n", "x")


@pytest.mark.parametrize("value", [[1, 2], (1, 2), np.array([1, 2]), [np.int64(1), 2.0], range(1, 3)])
def test_lists_of_whole_numbers_come_in_many_types(value):
    checked = whole_numbers("n", value, 1)
    assert checked == [1, 2]
    assert all(type(entry) is int for entry in checked)


@pytest.mark.parametrize("value", [1, "12", None, {1: 2}, np.array(1), np.ones((2, 2))])
def test_other_things_are_no_list(value):
    with pytest.raises(ValueError, match=r"(?s)^n=.*: expected a list of positive whole numbers\.$"):
        whole_numbers("n", value, 1)


def test_a_wrong_entry_of_a_list_is_named():
    with pytest.raises(ValueError, match=r"^n\[1\]=0: expected a positive whole number\.$"):
        whole_numbers("n", [1, 0], 1)


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.array(0.5)])
def test_numbers_come_in_many_types(value):
    for check in (fraction, positive, non_negative, lambda name, v: number_in(name, v, 0, 1)):
        checked = check("x", value)
        assert checked == 0.5
        assert type(checked) is float


@pytest.mark.parametrize(
    ("check", "value", "expected"),
    [
        (fraction, 1.1, "a number in [0, 1]"),
        (fraction, float("nan"), "a number in [0, 1]"),
        (fraction, True, "a number in [0, 1]"),
        (positive, 0, "a positive number"),
        (positive, float("inf"), "a positive number"),
        (non_negative, -0.1, "a number that is not negative"),
        (non_negative, "1", "a number that is not negative"),
    ],
)
def test_other_numbers_are_refused(check, value, expected):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - compared as a whole
        check("x", value)
    assert str(error.value) == f"x={value!r}: expected {expected}."


def test_the_end_of_a_half_open_range_is_outside():
    with pytest.raises(ValueError, match=r"expected a number in \[0, 1\)"):
        number_in("x", 1.0, 0, 1)


def test_flags_and_choices():
    assert flag("f", np.True_) is True
    assert choice("c", "a", ("a", "b")) == "a"
    for wrong in (1, "True", None, np.int64(1)):
        with pytest.raises(ValueError, match=r"^f=.*: expected True or False\.$"):
            flag("f", wrong)
    for wrong in (1, "d", None, ["a"]):
        with pytest.raises(ValueError, match=r"^c=.*: expected one of \['a', 'b'\]\.$"):
            choice("c", wrong, ("a", "b"))


def test_an_integer_beyond_all_floats_is_refused():
    for check in (positive, non_negative):
        with pytest.raises(ValueError, match="x=1000"):
            check("x", 10**400)


def test_what_is_saved_is_plain_python():
    given = {
        "a": np.array([1, 2]),
        "b": [np.float32(0.5), (np.int64(3), np.True_)],
        np.str_("c"): {"d": np.array(1.5)},
        "e": print,
    }
    saved = plain(given)
    assert saved == {"a": [1, 2], "b": [0.5, (3, True)], "c": {"d": 1.5}, "e": print}
    assert type(given["a"]) is np.ndarray
    leaves = [*saved["a"], saved["b"][0], *saved["b"][1], saved["c"]["d"], *saved]
    assert {type(leaf) for leaf in leaves} == {int, float, bool, str}


@pytest.mark.parametrize("value", ["a", ["a"], ("a", "a"), np.array(["a"]), [np.str_("a")]])
def test_names_come_in_many_types(value):
    assert names("n", value) == ["a"]
    assert type(names("n", value)[0]) is str


@pytest.mark.parametrize("value", [None, 1, [], [1], [["a"]], {"a": 1}, np.array([1.0])])
def test_other_things_are_no_names(value):
    with pytest.raises(ValueError, match=r"^n=.*: expected a name, or a list of names\.$"):
        names("n", value)
