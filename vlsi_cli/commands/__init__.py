"""One thin module a subcommand: a signature, one call, and what is printed."""
