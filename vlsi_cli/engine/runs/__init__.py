"""One module a subcommand: objects built from a config, then one call each."""
