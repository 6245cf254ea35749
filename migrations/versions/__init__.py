"""One file a revision. A revision is never edited once it was released."""
