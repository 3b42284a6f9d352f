"""Complete example jobs, from data to picture, with the small data sets that they need."""
