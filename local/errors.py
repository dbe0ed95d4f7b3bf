"""What can go wrong around the stack, as an error whose message is meant for the person at the keyboard."""


class StackError(Exception):
    """The stack cannot run as asked; the message is one sentence that says why and, where it can, what to do."""


class Interrupted(Exception):
    """Somebody asked the stack to stop while it was still starting."""
