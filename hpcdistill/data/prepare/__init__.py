"""What all kinds of preparation share: pieces, folders, bad records."""
