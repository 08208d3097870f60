import pytest
from torch import nn

from sb3_sparse.common.literals import parse_literal

NAMES = {"nn.ReLU": nn.ReLU, "Named": 7}


@pytest.mark.parametrize(
    "text",
    [
        "dict(sparsity=0.9, net_arch=dict(pi=[64, 64], qf=(400, 300)))",
        "{'a': None, 'b': True, 3: {1, 2}}",
        "  dict(log_std_init=-2.5, eps=+1e-5, name='x' \"y\")  ",
        "dict(\n  a=[],\n  b=()\n)",
        "[]",
        "-3",
        "1 + 2j",
        "b'bytes'",
    ],
)
def test_literals_have_the_value_that_python_gives_them(text):
    assert parse_literal("setting", text, NAMES) == eval(text.strip())


def test_names_stand_for_what_the_list_says():
    assert parse_literal("setting", "dict(activation_fn=nn.ReLU, n=[Named])", NAMES) == {"activation_fn": nn.ReLU, "n": [7]}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("__import__('os').system('true')", "is no literal"),
        ("dict(a=open('file'))", "is no literal"),
        ("dict(a=nn.Linear)", "the name 'nn.Linear' is not known"),
        ("nn.ReLU.__init__.__globals__", "is not known"),
        ("nn.ReLU()", "is no literal"),
        ("dict([('a', 1)])", "is no literal"),
        ("dict(**{'a': 1})", "is no literal"),
        ("{**{'a': 1}}", "is no literal"),
        ("[x for x in (1, 2)]", "is no literal"),
        ("lambda: 1", "is no literal"),
        ("(y := 3)", "is no literal"),
        ("f'{1}'", "is no literal"),
        ("2 ** 9 ** 9 ** 9", "is no literal"),
        ("{[]: 1}", "unhashable"),
        ("dict(a=1", "never closed"),
        ("a = 1", "invalid syntax"),
        ("", "invalid syntax"),
        ("dict(a=1)\0", "null"),
        ("-" * 100_000 + "1", ""),
    ],
)
def test_anything_else_is_refused_by_name(text, reason):
    with pytest.raises(ValueError, match=r"setting=.*: expected numbers|setting=[\s\S]*; expected numbers") as caught:
        parse_literal("setting", text, NAMES)
    assert reason in str(caught.value)
