"""What touches the machine: a user's files and code within limits, and child processes."""
