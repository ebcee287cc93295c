"""Options of a command from a dataclass, by tyro; a mistake in them is one sentence."""

import contextlib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from relic.mistakes import UserError, allowed


def about(text: str, name: str | None = None) -> Any:
    import tyro

    return tyro.conf.arg(help=text, name=name)


def value_of(args: Sequence[str], option: str, default: str) -> str:
    """The value of an option that is needed before the others can be parsed."""
    for at, arg in enumerate(args):
        if arg == option and at + 1 < len(args):
            return args[at + 1]
        if arg.startswith(f"{option}="):
            return arg.partition("=")[2]
    return default


def uris(name: str, values: Sequence[str]) -> list[str]:
    """URIs given one by one or as JSON lists, as a pipeline hands them on."""
    found: list[str] = []
    for value in values:
        if not value.startswith("["):
            found.append(value)
            continue
        try:
            found += [str(uri) for uri in json.loads(value)]
        except ValueError as error:
            raise UserError(f"--{name} is {value!r}; it must be artifact URIs or a JSON list of them") from error
    if not found:
        raise UserError(f"--{name} is not given; it must be the URI of an artifact")
    return [uri if "://" in uri else Path(uri).absolute().as_posix() for uri in found]


def parse(kind: Any, args: list[str], prog: str, description: str, defaults: Any = None) -> Any:
    """The options as a dataclass, with the values of `defaults` where that is one; a mistake is one sentence."""
    import tyro

    known = option_names(kind)
    for arg in args:
        name = arg.partition("=")[0]
        if name.startswith("--") and name != "--help" and plain(name) not in known:
            raise UserError(f"{prog} has no option {name}; {allowed(plain(name), sorted(known))}")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            if defaults is not None:
                return tyro.cli(kind, prog=prog, description=description, args=args, default=defaults)
            return tyro.cli(kind, prog=prog, description=description, args=args)
    except SystemExit as error:
        if error.code:
            raise UserError(sentence(said.getvalue())) from None
        raise


def plain(option: str) -> str:
    return option.replace("_", "-")


def option_names(kind: Any, prefix: str = "--", default: Any = None) -> set[str]:
    """All options of a dataclass, nested ones with dots; a tuple of dataclasses counts its elements."""
    names: set[str] = set()
    for item in fields(kind):
        name = f"{prefix}{plain(renamed(item))}"
        value = getattr(default, item.name, None) if default is not None else made_default(item)
        if is_dataclass(value):
            names |= option_names(type(value), f"{name}.", value)
        elif isinstance(value, tuple) and value and all(is_dataclass(element) for element in value):
            for at, element in enumerate(value):
                names |= option_names(type(element), f"{name}.{at}.", element)
        else:
            names |= {name, f"{prefix}no-{plain(renamed(item))}"} if isinstance(value, bool) else {name}
    return names


def renamed(item: Any) -> str:
    """A field's name as an option: its own, or the one that `about` gives."""
    said = [mark.name for mark in getattr(item.type, "__metadata__", ()) if getattr(mark, "name", None)]
    return said[0] if said else item.name


def made_default(item: Any) -> Any:
    if item.default_factory is not MISSING:
        return item.default_factory()
    return None if item.default is MISSING else item.default


REWORDED = (  # what tyro says -> what we say
    (r"invalid literal for int\(\) with base 10: ('.*')", r"\1 is not a whole number"),
    (r"could not convert string to float: ('.*')", r"\1 is not a number"),
    (r" \(required\)(?= --)", ";"),
    (r"^Required options Missing from ([^:]*): (--[^ ]+) [A-Z]+ (.*) \(required\)$", r"\1 needs \2: \3"),
    (r"; (--[^ ]+) [A-Z]+ ", r"; \1: "),
    (r"^Unrecognized options Unrecognized options: (.*)$", r"\1 belongs to no option; see --help"),
    (r"^Missing argument Missing value for argument '(.*)'. Expected (.*) values.", r"\1 needs a value (of \2)"),
    (r"^((Parsing|Value) error )?(Error parsing ([A-Za-z]+:)? ?)?", ""),
)


def sentence(box: str) -> str:
    """tyro's framed error as one line."""
    text = re.sub(r"\x1b\[[0-9;]*m|[╭╮╰╯│─]|-{3,}|^[|+]|[|+]$", " ", box, flags=re.MULTILINE)
    words = " ".join(re.split(r"For full helptext|Argument helptext", " ".join(text.split()))[0].split())
    for said, better in REWORDED:
        words = re.sub(said, better, words)
    return words
