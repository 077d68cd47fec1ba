"""Sound to numbers: the constants of the mel extractors, and log-mel on the device."""
