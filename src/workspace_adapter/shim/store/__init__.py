"""What the shim keeps on disk: one contract, SQLite by default, PostgreSQL for several replicas."""
