"""The commands `underway` and `underway-supervisor`."""
