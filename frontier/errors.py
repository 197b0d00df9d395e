"""The one error that users see, and the exit codes of every command."""

EXIT_OK = 0
EXIT_USER = 2
"""The user's input is wrong: one line on stderr says what, where and the mend."""
EXIT_TRANSIENT = 75
"""A failure that may pass by itself (EX_TEMPFAIL): running again is reasonable."""
EXIT_REQUEUE = 85
"""Stopped on request after a complete checkpoint: requeue the job."""


class UserError(Exception):
    """A mistake in what the user gave (config, file, path, size).

    The message is one line: what is wrong, where, and how to mend it. The command line prints it without a
    traceback and exits with `EXIT_USER`.
    """

    exit_code = EXIT_USER


class TransientError(UserError):
    """A failure outside the user's input that may pass by itself; exits with `EXIT_TRANSIENT`."""

    exit_code = EXIT_TRANSIENT


class RankError(UserError):
    """A user error that one rank alone met (its shard, its disk): that rank says it, the others end with it."""
