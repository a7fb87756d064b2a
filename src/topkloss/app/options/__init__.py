"""Options of the command: what one is, and a file of them."""
