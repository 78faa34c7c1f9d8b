"""The `tracker` command, one file per subcommand."""
