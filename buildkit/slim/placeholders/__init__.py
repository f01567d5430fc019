"""Makes placeholders for removed files; using one fails with the name of the slim rule that removed it."""
