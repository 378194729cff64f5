"""Training: the scripts that people run, and three packages behind them: data, engine, scores."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class UserError(Exception):
    """An error that the user can fix: it is printed as one line, and the program exits with this code."""

    code = 2


def reason_of(error: BaseException) -> str:
    """Why something failed, in one line: of an OSError the system's words, without the file; otherwise its text."""
    return getattr(error, "strerror", None) or one_line(error)


def one_line(message: object) -> str:
    """The text of an exception or message in one line; the name of its class if there is no text."""
    if isinstance(message, OSError) and message.strerror:
        return ": ".join(filter(None, [str(message.filename or ""), message.strerror]))
    return " ".join(str(message).split()) or type(message).__name__
