"""What the pages are made of: figures, explorers, explorables, exercises, verdicts."""
