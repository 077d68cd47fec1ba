"""Speech to the model's width: front ends, and the encoders they are compared with."""
