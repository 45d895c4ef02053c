"""The base of every configuration: frozen, keyword-only, strict about names, and round-tripping through JSON.

This module imports nothing but the standard library, and every room may import it.
"""

import dataclasses
import difflib
import math
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from types import UnionType
from typing import Any, ClassVar, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """The tail of an error message: the nearest of ``allowed``, then all of them."""
    names = sorted(allowed)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}Allowed: {', '.join(names)}."


def lookup(table: Mapping[str, T], name: str, what: str) -> T:
    """``table[name]``, or a ``ValueError`` that offers the nearest name."""
    if name not in table:
        raise ValueError(f"unknown {what} {name!r}; {did_you_mean(name, table)}")
    return table[name]


def location(*, default: Any = dataclasses.MISSING) -> Any:
    """A field that says where something lies, such as a path: it does not count in :meth:`Config.identity`."""
    return dataclasses.field(default=default, metadata={"location": True})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A frozen, keyword-only dataclass whose misspelt fields get the nearest name, and which knows its JSON form.

    Subclasses are decorated with ``@dataclass(frozen=True, kw_only=True)``, hold only numbers, strings, booleans,
    ``None``, tuples and other configs, and check themselves in ``__post_init__``; types are checked by then, against
    the annotations.
    """

    _classes: ClassVar[dict[str, type["Config"]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        other = Config._classes.get(cls.__name__)
        if other is not None and other.__module__ != cls.__module__:
            raise ValueError(
                f"two configuration classes are called {cls.__name__!r}: in {other.__module__} and {cls.__module__}"
            )
        Config._classes[cls.__name__] = cls

    def __new__(cls, **fields: Any) -> Self:
        allowed = {field.name for field in dataclasses.fields(cls) if field.init}
        for name in fields.keys() - allowed:
            raise TypeError(f"{cls.__name__} has no field {name!r}; {did_you_mean(name, allowed)}")
        hints = _type_hints(cls)  # type: ignore[arg-type]
        for name, hint in hints.items():
            if get_origin(hint) is ClassVar and not hasattr(cls, name):
                raise ValueError(f"{cls.__name__} lacks the class variable {name!r}")
        for name, value in fields.items():
            if name in hints and not _fits(value, hints[name]):
                raise ValueError(f"{cls.__name__}.{name} = {value!r}: must be {_described(hints[name])}")
        return super().__new__(cls)

    def require(self, holds: bool, field: str, allowed: str) -> None:
        """Raise ``ValueError`` naming the field, its value and what is allowed, unless ``holds``."""
        if not holds:
            raise ValueError(f"{type(self).__name__}.{field} = {getattr(self, field)!r}: must be {allowed}")

    def walk(self) -> Iterator["Config"]:
        """This config and all configs within it."""
        yield self
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, Config):
                    yield from item.walk()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; ``{"class": NAME, field: value, …}`` at every level."""
        return _encode(self, locations=True)

    def identity(self) -> dict[str, Any]:
        """:meth:`to_dict` without the fields that are a :func:`location`."""
        return _encode(self, locations=False)


def config_from_dict(data: Mapping[str, Any]) -> Any:
    """The config that :meth:`Config.to_dict` described. Only classes already defined are used: nothing is imported.

    Raises:
        ValueError: the class is unknown (a user's own class is known once their file is loaded) or a field is missing.
        TypeError: a field is unknown.
    """
    fields = dict(data)
    cls = lookup(Config._classes, fields.pop("class", ""), "configuration class")
    missing = {f.name for f in dataclasses.fields(cls) if f.init and f.default is f.default_factory} - fields.keys()
    if missing:
        raise ValueError(f"{cls.__name__} lacks the field {sorted(missing)[0]!r}")
    return cls(**{name: _decode(value) for name, value in fields.items()})


@cache
def _type_hints(cls: type[Config]) -> dict[str, Any]:
    """The annotations of a class; none where they name what exists for type checkers only."""
    try:
        return get_type_hints(cls)
    except NameError:
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the annotated type. A whole number is a number; truth values and infinity are not."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return any(value is option or (type(value) is type(option) and value == option) for option in arguments)
    if origin in (Union, UnionType):
        return any(_fits(value, option) for option in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        items = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        return len(items) == len(value) and all(map(_fits, value, items))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return not isinstance(hint, type) or origin is not None or isinstance(value, hint)


def _described(hint: Any) -> str:
    """An annotated type in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin in (Union, UnionType):
        return " or ".join(map(_described, arguments))
    if origin is tuple:
        if arguments[1:] == (...,):
            return f"a tuple, each item {_described(arguments[0])}"
        return f"a tuple of {len(arguments)}: {', '.join(map(_described, arguments))}"
    words = {
        int: "a whole number",
        float: "a finite number",
        str: "a string",
        bool: "True or False",
        type(None): "None",
    }
    return words.get(hint, f"a {getattr(hint, '__name__', hint)}")


def _encode(value: Any, locations: bool) -> Any:
    if isinstance(value, Config):
        fields = [f for f in dataclasses.fields(value) if f.init and (locations or not f.metadata.get("location"))]
        encoded = {field.name: _encode(getattr(value, field.name), locations) for field in fields}
        return {"class": type(value).__name__, **encoded}
    if isinstance(value, tuple):
        return [_encode(item, locations) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a config holds numbers, strings, None, tuples and configs, not {type(value).__name__}: {value!r}")


def _decode(value: Any) -> Any:
    if isinstance(value, Mapping):
        return config_from_dict(value)
    if isinstance(value, list):
        return tuple(_decode(item) for item in value)
    return value
