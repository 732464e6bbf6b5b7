"""A server in front of one model: many requests, each at its own number of visual tokens,
through OpenAI's API.
"""
