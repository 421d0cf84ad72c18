"""The one kind of error that is the user's to mend."""

from __future__ import annotations


class UserError(Exception):
    """Input that cannot be worked with: a wrong option, text, file or run folder.

    The message is one line that says what was given, what was expected and what to do (more lines
    where it shows the user's code). The command line prints it on stderr, without a traceback, and
    exits with status 2.
    """


def require(condition: bool, message: str) -> None:
    """Raise `UserError(message)` unless `condition` holds."""
    if not condition:
        raise UserError(message)


def whole_number(option: str, value: object, least: int, most: int | None = None) -> None:
    """Raise `UserError` unless an option's value is a whole number from `least` to `most`."""
    good = isinstance(value, int) and value >= least and (most is None or value <= most)
    allowed = f"{least} or more" if most is None else f"from {least} to {most}"
    require(good, f"{option} must be {allowed}, not {value}")
