"""What a person sees: the chat in the terminal. The only package that imports Textual."""
