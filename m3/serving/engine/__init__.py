"""The engine: requests join and leave one running batch; image features are cached."""
