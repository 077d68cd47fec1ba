"""Speech that a checkpoint makes: texts to mel, mel to sound, and files of them."""
