"""The commands underway-supervisor and underway."""
