"""What a person can get wrong, said in one sentence: the value and what is allowed."""

import difflib
import re
from collections.abc import Collection

MANY = 20  # names that are not listed any more


class UserError(ValueError):
    """A person's mistake; the command line says it and ends with exit code 2."""


def nodes_of(said: str) -> tuple[int, int]:
    """The least and the most of a number of nodes, such as 2, or MIN:MAX, such as 1:4; a ValueError otherwise."""
    found = re.fullmatch(r"([1-9]\d*)(?::([1-9]\d*))?", said)
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if least > most:
        raise ValueError(f"nodes is {said!r}; it must be a number such as 2, or MIN:MAX such as 1:4")
    return least, most


def allowed(name: str, names: Collection[str]) -> str:
    """The name that was probably meant, and what is allowed, without listing a hundred names."""
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.0)
    listed = f"allowed are {', '.join(names)}"
    if len(names) > MANY:
        listed = f"near are {', '.join(near)} (--help lists all {len(names)})"
    return f"did you mean {near[0]!r}? {listed}" if near else listed
