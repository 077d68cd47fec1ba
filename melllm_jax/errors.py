"""The two kinds of trouble that end a command with one line instead of a traceback."""


class Mistake(ValueError):
    """A user's mistake: the message names the field, its value and the rule. Exit status 2."""


class Fault(RuntimeError):
    """Trouble from outside (disk, audio, a checkpoint): the message names it. Exit status 1."""
