"""An utterance to the columns that the model reads."""
