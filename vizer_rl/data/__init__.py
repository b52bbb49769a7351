"""Images in: sources, decoding, data sets, drawn scenes."""
