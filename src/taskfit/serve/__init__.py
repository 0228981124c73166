"""One or many finished runs behind HTTP and in the browser."""
