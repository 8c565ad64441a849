"""The child process: imports the user's app and runs one task at a time. It never touches the queue."""
