"""A module of a user that cannot be loaded."""

raise ZeroDivisionError("division by zero")
