"""What a user adds to the Trainer."""
