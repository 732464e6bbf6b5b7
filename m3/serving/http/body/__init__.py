"""Fields of a request: which there are, what each may hold, and words for what it may not."""
