"""The parent process: claims, leases, commits, reaps, watches. It never imports or runs the user's code."""
