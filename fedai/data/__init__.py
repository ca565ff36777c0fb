"Any text in, a list of clients out: prompts, sources, who gets which examples, the tables they lie in."
