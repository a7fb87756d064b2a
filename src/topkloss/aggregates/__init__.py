"""From one loss per element to one number, differentiable in the losses."""
