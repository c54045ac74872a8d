"""Other people's errors within our own messages."""


def one_line(error: object) -> str:
    """The error's message as part of a one-line message of ours; its type's name if it has none."""
    return " ".join(str(error).split()) or type(error).__name__
