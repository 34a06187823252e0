"""A run as tables, pictures and Markdown."""
