"""Around a training loop: schedules, a monitor, a step that skips easy examples, a table to choose k from."""
