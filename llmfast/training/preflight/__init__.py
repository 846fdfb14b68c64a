"""What is looked at, set and checked before the first step."""
