"""The one exception that means *the caller can mend this*: shown as a sentence, never as a traceback."""


class HusaiError(Exception):
    """Bad input. The message is one sentence: what is wrong, where, and what is allowed.

    The command line prints it and exits with code 2; library callers may catch it.
    """
