"""The web page of `m3 serve --ui`."""
