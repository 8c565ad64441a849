"""Flight reports: one PDF per month for each carrier or destination, rendered by underway."""
