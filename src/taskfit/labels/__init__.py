"""The labels themselves: which are wrong, which to get next, and who can give them."""
