"""What each layer of a model predicts, and what that says about E and K."""
