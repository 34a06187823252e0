"""Who is timed."""
