"""Criteria: ``nn.Module`` = a loss, a rule, an aggregate."""
