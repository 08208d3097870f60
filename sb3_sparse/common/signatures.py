"""The keywords of a class whose constructors pass on what they do not know to those of its bases."""

import inspect
from typing import Any


def full_signature(cls: type) -> inspect.Signature:
    """
    The signature of a class, with the keywords that its constructors pass on by ``**kwargs``.

    :param cls: Any class.
    """
    positional: dict[str, inspect.Parameter] = {}
    keywords: dict[str, inspect.Parameter] = {}
    passes_positions_on = True
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        _, *parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        kinds = {parameter.kind for parameter in parameters}
        for parameter in parameters:
            if parameter.name in positional or parameter.name in keywords:
                continue
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and passes_positions_on:
                positional[parameter.name] = parameter
            elif parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                keywords[parameter.name] = parameter.replace(kind=parameter.KEYWORD_ONLY)
        passes_positions_on &= inspect.Parameter.VAR_POSITIONAL in kinds
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            break
    return inspect.Signature([*positional.values(), *keywords.values()])


class FullSignature:
    """
    As the class attribute ``__signature__``: what ``help``, notebooks and ``inspect.signature`` show is
    :func:`full_signature`, for subclasses too.
    """

    def __get__(self, instance: Any, owner: type) -> inspect.Signature:
        if instance is not None:
            # An instance that can be called has the signature of that.
            raise AttributeError("__signature__")
        return full_signature(owner)
