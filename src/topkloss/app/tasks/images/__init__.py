"""Images, one class each: a network, trained on Lightning."""
