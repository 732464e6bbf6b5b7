"""Training of a tower to see at low resolutions what it sees at the largest."""
