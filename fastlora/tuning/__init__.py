"""The search for the tiles that are fastest on a GPU: which are tried, on which shapes, and who wins."""
