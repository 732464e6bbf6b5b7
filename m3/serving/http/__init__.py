"""OpenAI's API over HTTP: schema, limits, errors, responses."""
