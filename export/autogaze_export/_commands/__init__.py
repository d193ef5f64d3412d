"""Subcommands of ``autogaze`` that this package brings."""
