"""Where an index keeps its rows: SQLite for one instance, PostgreSQL for several."""
