"""Flight reports: a PDF about every carrier and every destination of a month, made by underway."""
