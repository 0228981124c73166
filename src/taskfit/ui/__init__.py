"""From a file to a winner in the browser, for one person on this machine."""
