"""How Python calls a kernel: builtins whose machine code is ours, so what goes wrong in there would end the process."""

import sys
import threading
import time

import numpy as np
import pytest

from sb3_sparse.sparse.kernels.native.code import WORD, number, word
from sb3_sparse.sparse.kernels.native.kernel import Definition


def write_fill(code, x, factor, first, last):
    """x[i] = i * factor."""
    code.loop(first, last, lambda i: code.store(code.build.mul(i, factor), x, i))


def write_watch(code, flag, seen, first, last):
    """seen[0] = whether flag[0] was ever set, of so many looks."""

    def look(i, so_far):
        return [code.build.or_(so_far, code.build.load_atomic(flag, ordering="acquire", align=8, typ=WORD))]

    (total,) = code.loop(first, last, look, word(0))
    code.store(total, seen, word(0))


def write_nothing(code, *arguments):
    code.loop(*arguments, lambda i, total: [total], number(0.0))


@pytest.fixture(scope="module")
def fill():
    return Definition("x", "factor", write_fill).compile().call


def test_arguments_arrive_as_they_are(fill):
    x = np.zeros(5, dtype=np.int64)
    assert fill(x.ctypes.data, 2**40 + 1, 0, 3) is None
    assert x.tolist() == [0, 2**40 + 1, 2**41 + 2, 0, 0]
    fill(x.ctypes.data, -7, np.int64(1), True + 4)
    assert x.tolist() == [0, -7, -14, -21, -28]


@pytest.mark.parametrize("wrong", ["3", 3.0, None, object()])
@pytest.mark.parametrize("place", range(4))
def test_what_is_no_integer_is_refused(fill, place, wrong):
    x = np.ones(5, dtype=np.int64)
    arguments = [x.ctypes.data, 1, 0, 5]
    arguments[place] = wrong
    with pytest.raises(TypeError, match="integer"):
        fill(*arguments)
    assert x.tolist() == [1] * 5


@pytest.mark.parametrize("count", [0, 1, 3, 5, 9])
def test_another_number_of_arguments_is_refused(fill, count):
    x = np.ones(5, dtype=np.int64)
    with pytest.raises(TypeError):
        fill(*[x.ctypes.data, 1, 0, 5, 5, 5, 5, 5, 5][:count])
    assert x.tolist() == [1] * 5
    with pytest.raises(TypeError):
        fill(x.ctypes.data, 1, 0, last=5)


def test_no_reference_is_lost_or_kept(fill):
    x = np.zeros(5, dtype=np.int64)
    address, factor = x.ctypes.data, 2**50
    before = [sys.getrefcount(thing) for thing in (address, factor, None)]
    for _ in range(10_000):
        fill(address, factor, 0, 5)
    after = [sys.getrefcount(thing) for thing in (address, factor, None)]
    # Of None others come and go meanwhile.
    assert after[:2] == before[:2]
    assert abs(after[2] - before[2]) < 1000


def test_other_threads_run_meanwhile():
    watch = Definition("flag seen", "", write_watch).compile().call
    flag, seen = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)

    def set_flag():
        time.sleep(0.01)
        flag[0] = 1

    for _ in range(5):
        thread = threading.Thread(target=set_flag)
        thread.start()
        # Some tenths of a second. Whoever held Python's lock would not let the other thread go on.
        watch(flag.ctypes.data, seen.ctypes.data, 0, 300_000_000)
        thread.join()
        if seen[0]:
            break
        flag[0] = 0  # A busy machine did not let it run.
    assert seen[0] == 1


def test_each_kernel_stays_the_one_it_was():
    # What CPython reads of them at every call has to live on.
    fills = [Definition("x", "factor", write_fill).compile().call for _ in range(3)]
    empty = Definition("", "", write_nothing).compile().call
    x = np.zeros(3, dtype=np.int64)
    for i, each in enumerate(fills):
        each(x.ctypes.data, i, 0, 3)
        empty(0, 10)
        assert x.tolist() == [0, i, 2 * i]
        assert "built-in" in repr(each)
