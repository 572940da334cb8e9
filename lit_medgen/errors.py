"""The one-line error: what was found, what was expected, what to do.

A mistake in a config, a file or a command is an `InputError`. The command line prints its text as one line
and ends with exit code 2; a traceback appears only with ``--debug``. Everything else is a fault of ours and
keeps its traceback.
"""


class InputError(ValueError):
    """Bad input: a key, value or file that the user can mend. The text is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class MissingDataError(InputError, FileNotFoundError):
    """Data that is not where the config says; the text names the way to get it."""

    def __str__(self) -> str:
        # OSError formats its own arguments, which would hide ours.
        return str(self.args[0])


def describe(error: BaseException) -> str:
    """The text of any exception as one line; its class name if it has no text."""
    return " ".join(str(error).split()) or type(error).__name__
