"""Functions that ``torch.compile`` passes by."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def uncompiled(*, recursive: bool) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """As :func:`torch.compiler.disable`, which imports the compiler; this does so when the function is first called.

    Args:
        recursive: whether what the function calls is passed by too.
    """

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        disabled: Callable[Arguments, Result] | None = None

        @wraps(function)
        def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            nonlocal disabled
            if disabled is None:
                disabled = torch.compiler.disable(function, recursive=recursive)
            return disabled(*args, **kwargs)

        return call

    return decorate
