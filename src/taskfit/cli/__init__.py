"""The command line: arguments in, words and tables out; the logic is elsewhere."""
