"""The engine: load a GGUF with llama.cpp, read prompts, decode answers, remember what was read.

Knows nothing of HTTP, chats or screens. `scheduler.Engine` is its face; one thread of it owns llama.cpp.
"""
