"""Alignment: preference losses, reward models, distillation and policy optimization, as tasks on the one step loop."""
