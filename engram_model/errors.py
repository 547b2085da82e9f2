"""Errors that a user can act on: one line each, with the exit code of the command line."""


class EngramError(Exception):
    """Base of every error this project raises on purpose; the work could not be finished."""

    exit_code = 1


class UsageError(EngramError):
    """The request itself is wrong: an unknown option, name or combination."""

    exit_code = 2


class CheckpointError(EngramError):
    """A checkpoint or saved run cannot be opened, is incomplete or is damaged."""

    exit_code = 3


class CorpusError(EngramError):
    """A corpus cannot be read, is empty or is damaged."""

    exit_code = 3
