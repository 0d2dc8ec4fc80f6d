"""Which models exist, how they are fetched, verified and kept.

`store` says what is installed and is all that the engine process needs; `fetch` brings what is missing. Nothing is
imported here, so that using one costs nothing of the other.
"""
