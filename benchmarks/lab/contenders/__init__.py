"""Who is timed: a file for each library with its rows of the registry; contender.py has what they share."""
