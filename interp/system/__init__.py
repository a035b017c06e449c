"""What touches the machine: a user's files and code, read and run within limits, and processes that end with their parent."""
