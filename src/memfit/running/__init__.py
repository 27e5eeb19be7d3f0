"""``memfit run``: a script in a child process, a supervisor that outlives it."""
