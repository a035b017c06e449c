"""What is said of an error."""


def first_line(error: BaseException) -> str:
    """An error's first line without its full stop, at most 200 characters of it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")


def one_line(error: BaseException) -> str:
    """What an exception says, on one line and not at length."""
    return " ".join(str(error).split())[:200].rstrip(".")
