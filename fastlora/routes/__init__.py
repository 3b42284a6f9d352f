"""The code paths that compute a call, and the decision between them."""
