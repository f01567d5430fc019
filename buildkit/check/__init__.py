"""Checks an image: runs checks/ against its digest and evaluates size and time budgets."""
