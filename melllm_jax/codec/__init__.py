"""Sound to one stream of codes and back: FocalCodec-Stream."""
