"""Errors that end a command, as opposed to errors of one sample (`da2ray.labels.schema.Reason`)."""


class UserError(Exception):
    """Something the user can mend: bad usage, configuration, permissions, weights.

    The message is one or two lines that say what to change. Commands print it without a traceback and exit 2.
    """
