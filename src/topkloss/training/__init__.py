"""The application: trains an image classifier on a CSV of images, on Lightning."""
