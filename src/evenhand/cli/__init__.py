"""The command line: one thin file per command; nothing heavy is imported before a command runs."""
