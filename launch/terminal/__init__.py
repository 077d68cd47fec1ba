"""What a person types and sees: flags, subcommands, progress, numbers."""
