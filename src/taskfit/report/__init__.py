"""What finished runs say: tables, figures, advice, page."""
