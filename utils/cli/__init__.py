"""The command line: flags, running a script, progress."""
