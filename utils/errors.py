"""The one exception type that users are meant to read."""


class UserError(Exception):
    """Something the user can mend: the message says what is wrong, where, and what to do next.

    Scripts turn it into one line on stderr and exit code 2.
    """
