"""What can go wrong while the embedded stack starts."""


class StartupError(Exception):
    """The stack cannot start; the message is one clear sentence for the terminal."""
