"""What a run learns from: files and rendered scenes, read, cut, augmented, and put into batches."""
