"""The engine process: the engine behind an OpenAI-compatible API, on a Unix socket, for as long as it is needed."""
