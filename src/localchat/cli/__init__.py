"""What a person types: one module per command, each imported only when it is asked for."""
