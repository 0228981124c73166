"""The methods of adaptation: what to encode, what to sum as loss, how to score."""
