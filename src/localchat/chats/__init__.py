"""Conversations: a tree of messages on disk, the answer that is being written, search, import and export.

Knows the modules at the root and nothing of engines, sockets or screens. Importing this package imports nothing else.
"""
