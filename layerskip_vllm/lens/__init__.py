"""The layer lens: shows what each layer of a model predicts and suggests E and K."""
