"""Decides which files of an installed tree to remove: rules, profiles, recorded imports."""
