"""From a sweep specification to a table: plan, cells, trials, journal."""
