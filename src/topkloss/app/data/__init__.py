"""From a file or folder to checked rows."""
